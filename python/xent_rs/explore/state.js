/** What the reader has set, kept in the address (`#row.z=2,1,0.1&neurons.rate=0.15`) so that a view can be shared. */

const PAUSE = 250; // milliseconds; browsers refuse to change the address more often than about that

export class State {
    #values;
    #timer = 0;

    constructor() {
        const hash = location.hash.slice(1);
        this.#values = new URLSearchParams(hash.includes("=") ? hash : "");
    }

    /** One of the allowed words, the first of which is the default. */
    word(name, allowed) {
        const value = this.#values.get(name);
        return allowed.includes(value) ? value : allowed[0];
    }

    /** A number between bounds; an address may hold anything. */
    number(name, fallback, low, high) {
        const text = this.#values.get(name);
        const value = Number(text);
        return text && Number.isFinite(value) ? Math.min(Math.max(value, low), high) : fallback;
    }

    /** That of the given numbers which is nearest to the one in the address. */
    among(name, fallback, numbers) {
        const value = this.number(name, fallback, numbers[0], numbers.at(-1));
        return numbers.reduce((best, each) => (Math.abs(each - value) < Math.abs(best - value) ? each : best));
    }

    /** Numbers between bounds, at least `least` and at most `most` of them. */
    numbers(name, fallback, low, high, least, most) {
        const text = this.#values.get(name);
        if (text === null) return [...fallback];
        const values = text === "" ? [] : text.split(",").map((each) => (each.trim() ? Number(each) : NaN));
        if (values.length < least || values.length > most || !values.every(Number.isFinite)) return [...fallback];
        return values.map((value) => Math.min(Math.max(value, low), high));
    }

    /** Keep a value: a string, a number, or numbers; one that is the default needs no room in the address. */
    keep(name, value, fallback) {
        const text = String(value);
        if (text === String(fallback)) this.#values.delete(name);
        else this.#values.set(name, text);
        this.#timer ||= setTimeout(() => this.#write(), PAUSE);
    }

    /** The address of this view. */
    get address() {
        const hash = this.#values.toString().replaceAll("%2C", ",");
        return location.href.split("#")[0] + (hash ? `#${hash}` : "");
    }

    #write() {
        this.#timer = 0;
        history.replaceState(null, "", this.address);
    }
}
