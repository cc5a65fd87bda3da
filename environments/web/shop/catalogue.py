"""What a shop sells: words of several trades, articles with prices, and what the agent is asked to buy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

NOUNS: dict[str, tuple[str, ...]] = {
    "kitchen": ("cup", "pan", "bowl", "knife", "fork", "plate", "pot", "tray"),
    "garden": ("rake", "spade", "hose", "bench", "pump", "seed", "gate", "fence"),
    "office": ("pen", "desk", "lamp", "clip", "chair", "stamp", "folder", "ruler"),
    "clothes": ("hat", "scarf", "coat", "glove", "belt", "shirt", "sock", "boot"),
    "music": ("drum", "flute", "harp", "horn", "violin", "bell", "guitar", "piano"),
    "camping": ("tent", "rope", "torch", "stove", "flask", "mat", "compass", "hammock"),
}
COLOURS = ("red", "blue", "green", "white", "black", "yellow", "grey", "brown")
MATERIALS = ("oak", "steel", "cotton", "glass", "cork", "silver", "bamboo", "wool")
SIZES = ("small", "medium", "large")
PEOPLE = ("Ada", "Bela", "Cleo", "Dora", "Emil", "Finn", "Greta", "Hugo", "Ines", "Jon")
STREETS = ("Mill Road", "Lake Street", "Oak Lane", "Station Square", "Hill Way", "Harbour Street")


@dataclass(frozen=True)
class Article:
    number: int
    name: str  # unique in the shop
    noun: str
    price: int
    material: str


@dataclass(frozen=True)
class Line:
    """So many of one article in one size (`""` where the shop has no sizes)."""

    article: int
    size: str
    quantity: int


@dataclass(frozen=True)
class Wish:
    """What the agent is asked for, in words, and what order fulfils it."""

    words: str
    lines: tuple[Line, ...]
    coupon: str = ""
    name: str = ""
    street: str = ""


def stock(domain: str, count: int, naming: str, prices: str, rng: np.random.Generator) -> list[Article]:
    """`count` articles with different names and different prices, in shop order."""
    nouns = NOUNS[domain]
    if naming == "plain":
        names = [(noun, noun) for noun in nouns]
    else:
        some = [nouns[int(i)] for i in rng.permutation(len(nouns))[: max(2, count // 3)]]
        names = [(f"{colour} {noun}", noun) for noun in some for colour in COLOURS]
    chosen = [names[int(i)] for i in rng.permutation(len(names))[:count]]
    top = max(9, count) if prices == "small" else 99
    costs = 1 + rng.permutation(top)[:count]
    materials = [MATERIALS[int(i)] for i in rng.integers(len(MATERIALS), size=count)]
    return [Article(n + 1, *chosen[n], int(costs[n]), materials[n]) for n in range(len(chosen))]


def seek(kind: str, articles: list[Article], rng: np.random.Generator) -> tuple[Article, str]:
    """An article, and the words that single it out: by name, as the cheapest, by its material, or by a limit.

    Where words other than the name could fit several articles, they say which is meant (the cheaper one).
    """
    target = articles[int(rng.integers(len(articles)))]
    family = [a for a in articles if a.noun == target.noun]
    kin = target.noun if len({a.noun for a in articles}) < len(articles) else ""
    if kind == "cheapest":
        best = min(family if kin else articles, key=lambda a: a.price)
        return best, f"cheapest {kin}".strip()
    if kind == "material":
        same = [a for a in (family if kin else articles) if a.material == target.material]
        return min(same, key=lambda a: a.price), f"cheapest {kin or 'article'} of {target.material}"
    if kind == "limit":
        under = [a for a in (family if kin else articles) if a.price <= target.price]
        limit = target.price + int(rng.integers(0, 1 + _room(target, family if kin else articles)))
        return max(under, key=lambda a: a.price), f"dearest {kin or 'article'} for at most {limit}"
    return target, target.name


def _room(target: Article, among: list[Article]) -> int:
    """How much the limit may lie above the target without letting a dearer one in."""
    dearer = [a.price for a in among if a.price > target.price]
    return min(dearer) - target.price - 1 if dearer else 5
