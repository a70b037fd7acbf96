"""Hostile input by the thousand: `python -m tests.fuzz --count 20000 --rng-seed 1`; see
`__main__`."""
