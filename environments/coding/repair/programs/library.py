"""Books, loans and catalogue numbers."""

# ruff: noqa: PERF401 - loops have more places for a mutation than comprehensions
from __future__ import annotations

from .inputs import many, number, takes, text, together, word

BOOKS = many(together(word(), number(0, 5)), 0, 6)
DAYS = many(number(0, 40), 0, 6)


@takes(number(0, 60), number(0, 40))
def late_fee(day, due):
    """2 for each day after the due day, 30 at most. The first 3 days are free and not counted."""
    late = day - due - 3
    if late <= 0:
        return 0
    if late > 15:
        return 30
    return late * 2


@takes(DAYS, number(0, 40), number(1, 20))
def overdue_loans(loans, today, period):
    """How many of the loans, given by their first day, are older than the period. Loans after today do not count."""
    count = 0
    for start in loans:
        if start > today:
            continue
        if today - start > period:
            count = count + 1
    return count


@takes(number(0, 200))
def check_digit(code):
    """The last digit of the sum of the code's digits, the rightmost taken 1 time, the next 2 times, and so on.

    A code below 10 has check digit 0.
    """
    if code < 10:
        return 0
    total = 0
    digits = str(code)
    for i in range(len(digits)):
        total = total + int(digits[i]) * (len(digits) - i)
    return total % 10


@takes(BOOKS, number(1, 4))
def titles_to_order(books, wanted):
    """Entries [title, copies missing] for each entry [title, copies] with fewer copies than wanted, in order."""
    orders = []
    for title, copies in books:
        missing = wanted - copies
        if missing <= 0:
            continue
        orders.append([title, missing])
    return orders


@takes(text(0, 8), text(1, 1))
def count_letter(title, letter):
    """How often the letter is in the title; a title of fewer than 2 letters gives 0."""
    if len(title) < 2:
        return 0
    return len(title) - len(title.replace(letter, ""))


@takes(many(word(), 0, 6), number(1, 4))
def shelf_rows(titles, width):
    """The titles, sorted, in rows of width titles each, the last row perhaps shorter. No titles give one empty row."""
    titles = sorted(titles)
    if len(titles) == 0:
        return [[]]
    rows = []
    for start in range(0, len(titles), width):
        rows.append(titles[start : start + width])
    return rows


@takes(BOOKS)
def copies_by_title(books):
    """Entries [title, copies in all] for entries [title, copies], each title once, sorted by title; without copies, left out."""
    totals = {}
    for title, copies in books:
        if copies == 0:
            continue
        totals[title] = totals.get(title, 0) + copies
    return sorted([title, copies] for title, copies in totals.items())


@takes(number(1, 200), number(1, 200), number(1, 30))
def days_to_read(pages, read, speed):
    """Days that the pages not yet read still take at speed pages a day, the last one perhaps not full. 0 when done."""
    left = pages - read
    if left <= 0:
        return 0
    days = left // speed
    if left % speed > 0:
        days = days + 1
    return days


@takes(many(text(1, 3), 0, 6), text(1, 2))
def starts_with(titles, prefix):
    """The titles that begin with the prefix and are longer than it, each once, in order."""
    found = []
    for title in titles:
        if title in found:
            continue
        if title.startswith(prefix) and len(title) - len(prefix) > 0:
            found.append(title)
    return found


@takes(many(number(0, 3), 0, 4), many(number(0, 3), 0, 4))
def busiest_day(loans, returns):
    """Smallest of the days that are in the loans or in the returns most often, both together. -1 without any."""
    best = -1
    most = 0
    for day in sorted(loans + returns):
        times = loans.count(day) + returns.count(day)
        if times - most > 0:
            best = day
            most = times
    return best


@takes(number(0, 20), number(0, 20))
def pages_between(first, last):
    """Number of pages from first to last, both included; the other way round where last is smaller. Page 0 is no page."""
    if first == 0 or last == 0:
        return 0
    if last < first:
        return first - last + 1
    return last - first + 1


@takes(many(number(0, 3), 0, 8), number(0, 6))
def waiting_place(queue, copies):
    """How many in the queue, given by the copies each wants, go empty when they are served in order while copies last.

    Who wants more than is left gets nothing; who comes after may still be served.
    """
    empty = 0
    for wanted in queue:
        if wanted == 0:
            continue
        if copies - wanted < 0:
            empty = empty + 1
            continue
        copies = copies - wanted
    return empty
