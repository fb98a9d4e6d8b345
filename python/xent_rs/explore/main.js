/** The page: loads the kernels, builds the panels, and keeps theme and address. */

import { curve } from "./curve.js";
import { divergence } from "./divergence.js";
import { load } from "./kernels.js";
import { landscape } from "./landscape.js";
import { neurons } from "./neurons.js";
import { row } from "./row.js";
import { State } from "./state.js";

const THEMES = ["system", "light", "dark"];

const state = new State();
theme(document.getElementById("theme"));
share(document.getElementById("share"));
addEventListener("hashchange", () => {
    if (location.hash.includes("=")) location.reload(); // another view, typed in or from the history
});

try {
    const kernels = await load();
    const place = (name) => document.querySelector(`[data-panel="${name}"]`);
    const move = curve(place("curve"), kernels, state);
    row(place("row"), kernels, state, move);
    divergence(place("divergence"), kernels, state);
    neurons(place("neurons"), kernels, state);
    landscape(place("landscape"), kernels, state);
    document.documentElement.dataset.ready = "";
} catch (error) {
    const failure = document.getElementById("failure");
    failure.hidden = false;
    failure.textContent = `The kernels could not be started: ${error.message}`;
    throw error;
}

/** The button that goes through the themes; the choice is remembered where the browser allows it. */
function theme(button) {
    let chosen = "system";
    try {
        chosen = localStorage.getItem("xent_rs.theme") ?? chosen;
    } catch {
        // Storage is forbidden: the choice lasts as long as the page.
    }
    set(THEMES.includes(chosen) ? chosen : "system");
    button.addEventListener("click", () => set(THEMES[(THEMES.indexOf(chosen) + 1) % THEMES.length]));

    function set(name) {
        chosen = name;
        document.documentElement.dataset.theme = name;
        button.textContent = `Theme: ${name}`;
        try {
            localStorage.setItem("xent_rs.theme", name);
        } catch {
            // As above.
        }
    }
}

/** The button that copies the address of this view. */
function share(button) {
    const label = button.textContent;
    button.addEventListener("click", async () => {
        history.replaceState(null, "", state.address);
        try {
            await navigator.clipboard.writeText(state.address);
            button.textContent = "Link copied";
        } catch {
            button.textContent = "The link is in the address bar";
        }
        setTimeout(() => (button.textContent = label), 2000);
    });
}
