"""The hostile panel: what an agent may try against its box, its worker and its verdict, tried for real on a backend."""
