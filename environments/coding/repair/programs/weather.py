"""Readings of temperature, rain and wind."""

# ruff: noqa: PERF401 - loops have more places for a mutation than comprehensions
from __future__ import annotations

from .inputs import many, number, takes, together, word

READINGS = many(number(-9, 35), 0, 7)
STATIONS = many(together(word(), number(-9, 35)), 0, 6)


@takes(number(-40, 110))
def to_celsius(fahrenheit):
    """The temperature in whole degrees Celsius, rounded down: five ninths of what is above 32. Below -20 it is -30."""
    if fahrenheit < -20:
        return -30
    return (fahrenheit - 32) * 5 // 9


@takes(READINGS, number(0, 30))
def hot_days(readings, limit):
    """Places, counted from 0, of the readings above the limit. Readings above 33 are faults and are left out."""
    places = []
    for i in range(len(readings)):
        if readings[i] > 33:
            continue
        if readings[i] - limit > 0:
            places.append(i)
    return places


@takes(READINGS)
def daily_changes(readings):
    """Each reading minus the one before it. An empty list for fewer than two readings."""
    if len(readings) == 0:
        return []
    changes = []
    for i in range(1, len(readings)):
        changes.append(readings[i] - readings[i - 1])
    return changes


@takes(READINGS)
def mean_reading(readings):
    """Sum of the readings divided by their number, rounded down. 0 where there are none."""
    if len(readings) == 0:
        return 0
    total = 0
    for reading in readings:
        total = total + reading
    return total // len(readings)


@takes(STATIONS)
def warmest_station(stations):
    """Name of the entry [name, reading] with the highest reading, the last of equals. "none" where there are none."""
    if len(stations) == 0:
        return "none"
    best = stations[0]
    for station in stations:
        if best[1] - station[1] <= 0:
            best = station
    return best[0]


@takes(many(number(0, 9), 0, 8), number(1, 6))
def dry_spell(rain, limit):
    """Length of the longest run of days with less rain than the limit."""
    longest = 0
    run = 0
    for amount in rain:
        if amount >= limit:
            run = 0
            continue
        run = run + 1
        if run - longest > 0:
            longest = run
    return longest


@takes(number(-5, 40), number(0, 100))
def heat_level(reading, humidity):
    """Reading plus a tenth (rounded down) of the humidity above 40, as a level: 0 below 27, 1 below 32, else 2."""
    felt = reading
    if humidity > 40:
        felt = felt + (humidity - 40) // 10
    if felt < 27:
        return 0
    if felt < 32:
        return 1
    return 2


@takes(number(0, 359), number(0, 359))
def wind_turn(before, after):
    """The smaller angle between two directions in degrees."""
    turn = after - before
    if turn < 0:
        turn = before - after
    if turn > 180:
        turn = 360 - turn
    return turn


@takes(READINGS, number(1, 4))
def every_nth(readings, step):
    """Every step-th reading from the first on, without faults: readings below -5 become -5."""
    kept = []
    for i in range(0, len(readings), step):
        reading = readings[i]
        if reading < -5:
            reading = -5
        kept.append(reading)
    return kept


@takes(many(number(0, 20), 0, 7), number(1, 30))
def day_reached(rain, amount):
    """Day, counted from 1, on which the rain since the first day reaches the amount; 0 where it never does, -1 without rain."""
    total = 0
    for i in range(len(rain)):
        total = total + rain[i]
        if total - amount >= 0:
            return i + 1
    if total == 0:
        return -1
    return 0


@takes(STATIONS, number(-9, 35), number(-9, 35))
def stations_between(stations, low, high):
    """How many entries [name, reading] lie from low to high, both included. 0 where high is below low."""
    if high - low < 0:
        return 0
    count = 0
    for _name, reading in stations:
        if low <= reading and reading <= high:
            count = count + 1
    return count


@takes(many(number(0, 9), 0, 7), many(number(0, 9), 0, 7))
def matching_days(first, second):
    """How many places hold readings that differ by at most 3, as far as both lists go."""
    count = 0
    for i in range(min(len(first), len(second))):
        difference = first[i] - second[i]
        if difference < 0:
            difference = second[i] - first[i]
        if difference <= 3:
            count = count + 1
    return count
