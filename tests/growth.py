"""By how much work raises the most memory that a process holds: text for a process of its own, on Linux."""

GROWTH = """
def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))

def growth(work):
    with open("/proc/self/clear_refs", "w") as references:
        references.write("5")  # The peak starts anew.
    before = peak()
    result = work()
    return peak() - before
"""
