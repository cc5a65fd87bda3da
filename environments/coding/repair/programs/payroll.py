"""Hours, wages and dates of payment."""

# ruff: noqa: PERF401 - loops have more places for a mutation than comprehensions
from __future__ import annotations

from .inputs import many, number, takes, together, word

HOURS = many(number(0, 12), 0, 7)
PEOPLE = many(together(word(), number(10, 60)), 0, 5)


@takes(number(0, 60), number(5, 20))
def weekly_wage(hours, rate):
    """Hours times rate; each hour above 40 counts half a rate more, rounded down over all of them."""
    if hours <= 40:
        return hours * rate
    extra = hours - 40
    return hours * rate + extra * rate // 2


@takes(number(0, 120))
def income_tax(income):
    """Nothing up to 20, a tenth (rounded down) of what is above 20 up to 60, and a fifth (rounded down) of what is above 60."""
    if income <= 20:
        return 0
    tax = (min(income, 60) - 20) // 10
    if income > 60:
        tax = tax + (income - 60) // 5
    return tax


@takes(HOURS, number(0, 10))
def overtime_days(hours, limit):
    """Numbers, counted from 1, of the days with more hours than the limit; [0] where there are none."""
    days = []
    for i in range(len(hours)):
        if hours[i] - limit > 0:
            days.append(i + 1)
    if len(days) == 0:
        return [0]
    return days


@takes(number(-1, 30), number(1, 20))
def vacation_days(years, base):
    """Base days, and one more for each 5 full years, 6 more at most. 0 for a negative number of years."""
    if years < 0:
        return 0
    more = years // 5
    if more > 6:
        more = 6
    return base + more


@takes(PEOPLE, number(10, 60))
def paid_above(people, wage):
    """How many entries [name, wage] are paid more than that wage, each name counted once."""
    seen = []
    for name, paid in people:
        if name in seen:
            continue
        if paid - wage > 0:
            seen.append(name)
    return len(seen)


@takes(PEOPLE)
def wage_spread(people):
    """Highest minus lowest wage of the entries [name, wage]. 0 where there are no entries."""
    if len(people) == 0:
        return 0
    high = people[0][1]
    low = people[0][1]
    for _name, wage in people:
        if wage > high:
            high = wage
        if wage < low:
            low = wage
    return high - low


@takes(number(0, 24), number(0, 24))
def shift_length(start, end):
    """Hours from start to end o'clock; a shift that ends before it starts goes over midnight. Equal hours give 0."""
    if start == end:
        return 0
    if end < start:
        return 24 - start + end
    return end - start


@takes(many(number(0, 50), 0, 6), number(0, 40))
def capped_total(bonuses, cap):
    """Sum of the bonuses, of each no more than the cap; a bonus below 5 is not paid."""
    total = 0
    for bonus in bonuses:
        if bonus < 5:
            continue
        if bonus - cap > 0:
            bonus = cap
        total = total + bonus
    return total


@takes(number(0, 99), number(1, 6))
def split_evenly(amount, people):
    """The amount in as many whole shares as there are people; the first ones get one more where it does not go up."""
    share = amount // people
    rest = amount % people
    shares = []
    for i in range(people):
        if i < rest:
            shares.append(share + 1)
            continue
        shares.append(share)
    return shares


@takes(number(1, 31), number(1, 31))
def days_to_payment(today, payday):
    """Days until the next payday in months of 30 days; 0 on the day itself. Day 31 counts as day 30."""
    if today > 30:
        today = 30
    if payday > 30:
        payday = 30
    if payday < today:
        return payday - today + 30
    return payday - today


@takes(many(number(-3, 3), 0, 8))
def longest_rest(hours):
    """Length of the longest run of days without work: 0 hours, or fewer where hours were given back."""
    longest = 0
    run = 0
    for worked in hours:
        if worked > 0:
            run = 0
            continue
        run = run + 1
        if run - longest > 0:
            longest = run
    return longest


@takes(number(0, 90), number(0, 60), number(1, 30))
def net_pay(gross, loan, rate):
    """Gross pay less the rate, but of the rate no more than the loan, and never below 10 unless the gross pay is."""
    if gross < 10:
        return gross
    left = gross - min(loan, rate)
    if left < 10:
        return 10
    return left
