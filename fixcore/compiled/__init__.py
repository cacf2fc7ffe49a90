"""Plain loops that numba compiles, for what takes torch many steps. On a CPU; each has a twin in torch."""
