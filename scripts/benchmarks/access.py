"""Who asks: requests of one handler for anybody, with an API key, and with a signed token, all in one run; and what a token costs."""

from .record import program


def measure(rounds):
    return program("access", rounds) + program("tokens")


def show(figures):
    print(f"{'who asks':<28}{'requests/s':>12}{'ratio':>8}  beside   (medians)")
    for row in figures:
        if "way" in row:
            print(f"{row['way']:<28}{row['per_s']:>12.0f}{row['ratio']:>8.3f}  {row['beside']}")
        else:
            print(f"{row['token']}: {row['first_us']} us for the first time, {row['known_us']} us when it is known")
