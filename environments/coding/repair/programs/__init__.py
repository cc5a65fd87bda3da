"""Small programs, right as they stand here: what `environments/coding/repair` breaks and an agent mends.

One file per domain. A program is a function of JSON values with a docstring that says all it must do, and `@takes(...)`,
which draws its arguments. There are no `while` loops and no large powers, so a broken one still ends.
"""
