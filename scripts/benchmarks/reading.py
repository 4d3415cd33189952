"""Reading the record: filtered pages of a large table beside those of a small one, and verifying it, all in one run."""

from .record import program


def measure(events, rounds):
    return program("reading", events, rounds)


def show(figures):
    print(f"{'a page of 50 records':<34}{'50 thousand':>13}{'many':>10}{'ratio':>8}   (ms, medians)")
    for row in figures:
        if "asked" in row:
            print(f"{row['asked']:<34}{row['small_ms']:>13.3f}{row['large_ms']:>10.3f}{row['ratio']:>8.2f}")
            many = row["events"]
        else:
            print(f"many: {many} events; read and verified: {row['per_s']:.0f} events/s")
