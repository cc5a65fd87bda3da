"""Stock, shelves and orders."""

# ruff: noqa: PERF401 - loops have more places for a mutation than comprehensions
from __future__ import annotations

from .inputs import many, number, takes, together, word

STOCK = many(together(word(), number(-2, 9), number(1, 12)), 0, 5)
COUNTS = many(number(0, 12), 0, 7)


@takes(STOCK)
def total_value(stock):
    """Sum of count times price over entries [name, count, price]. Entries with a negative count do not matter."""
    total = 0
    for _name, count, price in stock:
        if count < 0:
            continue
        total = total + count * price
    return total


@takes(STOCK, number(0, 8))
def reorder_list(stock, minimum):
    """Names of the entries [name, count, price] whose count is below the minimum, in order, each name once."""
    names = []
    for name, count, _price in stock:
        if name in names:
            continue
        if minimum - count > 0:
            names.append(name)
    return names


@takes(number(0, 20), number(-2, 20))
def remove_units(count, taken):
    """What is left of count when taken units are removed: never below 0. A negative taken changes nothing."""
    if taken < 0:
        return count
    if taken > count:
        return 0
    return count - taken


@takes(number(-1, 40), number(1, 8))
def shelf_of(position, per_shelf):
    """Shelf, counted from 1, of a position, counted from 1, with per_shelf positions each. 0 where position is below 1."""
    if position < 1:
        return 0
    return (position - 1) // per_shelf + 1


@takes(many(number(1, 30), 0, 6))
def longest_gap(days):
    """Largest difference between neighbours in the sorted days. 0 for fewer than two days."""
    days = sorted(days)
    if len(days) < 2:
        return 0
    longest = 0
    for i in range(1, len(days)):
        gap = days[i] - days[i - 1]
        if gap > longest:
            longest = gap
    return longest


@takes(number(-2, 30), number(1, 7))
def boxes_needed(units, size):
    """How many boxes of that size hold the units, the last box perhaps not full. 0 where there are no units."""
    if units <= 0:
        return 0
    full = units // size
    if units % size > 0:
        full = full + 1
    return full


@takes(number(0, 200), number(0, 130))
def reduced_price(price, percent):
    """The price less that percentage, rounded down to whole cents from below. More than 100 percent gives 0."""
    if percent > 100:
        return 0
    return price - price * percent // 100


@takes(many(together(word(), number(1, 9)), 0, 5))
def oldest_batch(batches):
    """Name of the entry [name, day] with the smallest day, the first of equals; "none" where there are no entries.

    Where that day is after day 6, " (late)" is added to the name.
    """
    best = "none"
    best_day = 0
    for name, day in batches:
        if best == "none" or best_day - day > 0:
            best = name
            best_day = day
    if best_day > 6:
        return best + " (late)"
    return best


@takes(many(number(0, 9), 0, 7), number(0, 4))
def window_sums(sales, width):
    """Sum of each run of width neighbouring sales, from left to right. An empty list where width is below 1."""
    if width < 1:
        return []
    sums = []
    for start in range(0, len(sales) - width + 1):
        sums.append(sum(sales[start : start + width]))
    return sums


@takes(COUNTS, number(0, 12))
def rank_of(counts, count):
    """One more than the number of counts that are larger. 0 where the count is not among them."""
    if count not in counts:
        return 0
    rank = 1
    for other in counts:
        if other - count > 0:
            rank = rank + 1
    return rank


@takes(COUNTS, COUNTS)
def stock_change(before, after):
    """After minus before, place by place; where one list is shorter its missing counts are 0."""
    changes = []
    for i in range(max(len(before), len(after))):
        old = 0
        if i < len(before):
            old = before[i]
        new = 0
        if i < len(after):
            new = after[i]
        changes.append(new - old)
    return changes


@takes(COUNTS, number(1, 9))
def days_below(levels, limit):
    """How many levels in a row, at the end of the list, are below the limit."""
    days = 0
    for i in range(len(levels)):
        if levels[len(levels) - 1 - i] >= limit:
            break
        days = days + 1
    return days
