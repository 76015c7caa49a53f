"""Identity basis: principal components of random MakeHuman heads."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Final

import numpy as np
from numpy.typing import NDArray

from open_head.makehuman import TARGETS, Array, Wheel

LOCAL: Final = ("cheek", "chin", "ears", "eyebrows", "eyes", "forehead", "head", "mouth", "neck", "nose")
"""Folders of the morph targets that change the shape of a head."""

OPPOSITES: Final = {
    "incr": "decr",
    "up": "down",
    "out": "in",
    "forward": "backward",
    "convex": "concave",
    "uncompress": "compress",
}
"""Last words in the names of the two targets of one slider."""

SLIDER_SIGMA: Final = 0.22
"""Standard deviation of the sliders; 0.45 gives caricatures."""

DRAWS: Final = 1500
"""Number of random heads."""

COMPONENTS: Final = 60
"""Number of identity components that are kept."""

SEED: Final = 20
"""Seed of the random heads."""


def sliders(wheel: Wheel) -> list[dict[int, list[str]]]:
    """Sliders of local morph targets: each maps -1 and +1 to its targets; left and right targets move together."""
    found: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    words = dict.fromkeys(OPPOSITES, +1) | dict.fromkeys(OPPOSITES.values(), -1)
    for name in wheel.names:
        match = re.fullmatch(re.escape(TARGETS) + r"(\w+)/(.+)\.target(?:\.gz)?", name)
        if match is None or match[1] not in LOCAL:
            continue
        stem, _, last = match[2].rpartition("-")
        sign = words.get(last, 0)
        key = re.sub(r"^[lr]-", "", stem if sign else match[2])
        found[f"{match[1]}/{key}"][sign or +1].append(name)
    return [dict(found[key]) for key in sorted(found)]


def macro_weights(rng: np.random.Generator, draws: int) -> dict[str, Array]:
    """Weights (draws,) of the macro targets: products of race, gender, age, muscle and weight, as in MakeHuman."""
    race = rng.dirichlet([1.0, 1.0, 1.0], draws)
    male = rng.uniform(0.0, 1.0, draws)
    old = rng.beta(1.0, 2.0, draws)
    child = np.where(rng.uniform(size=draws) < 0.1, rng.uniform(0.0, 0.5, draws), 0.0)

    def thirds(low: str, middle: str, high: str) -> dict[str, Array]:
        value = np.clip(rng.normal(0.0, 0.45, draws), -1.0, 1.0)
        return {low: np.maximum(-value, 0.0), middle: 1.0 - np.abs(value), high: np.maximum(value, 0.0)}

    races = dict(zip(("african", "asian", "caucasian"), race.T, strict=True))
    genders = {"male": male, "female": 1.0 - male}
    ages = {"child": child, "young": (1.0 - child) * (1.0 - old), "old": (1.0 - child) * old}
    muscles = thirds("minmuscle", "averagemuscle", "maxmuscle")
    weights = thirds("minweight", "averageweight", "maxweight")
    result = {}
    for g, by_gender in genders.items():
        for a, by_age in ages.items():
            for r, by_race in races.items():
                result[f"macrodetails/{r}-{g}-{a}"] = by_race * by_gender * by_age
            for m, by_muscle in muscles.items():
                for w, by_weight in weights.items():
                    result[f"macrodetails/universal-{g}-{a}-{m}-{w}"] = by_gender * by_age * by_muscle * by_weight
    return {f"{TARGETS}{name}.target.gz": weight for name, weight in result.items()}


def random_people(wheel: Wheel, points: NDArray[np.int64]) -> NDArray[np.float32]:
    """Positions (DRAWS, P, 3) of chosen base-mesh vertices for random people, decimetres."""
    rng = np.random.default_rng(SEED)
    place = np.full(len(wheel.vertices), -1)
    place[points] = np.arange(len(points))
    people = np.repeat(wheel.vertices[None, points].astype(np.float32), DRAWS, axis=0)

    def add(name: str, weight: Array) -> None:
        index, offset = wheel.target(name)
        inside = place[index] >= 0
        active = np.flatnonzero(weight)
        if inside.any() and len(active):
            at = np.ix_(active, place[index[inside]])
            people[at] += (weight[active, None, None] * offset[inside]).astype(np.float32)

    for name, weight in macro_weights(rng, DRAWS).items():
        add(name, weight)
    for slider in sliders(wheel):
        value = rng.normal(0.0, SLIDER_SIGMA, DRAWS)
        for sign, names in slider.items():
            for name in names:
                add(name, np.maximum(sign * value, 0.0))
    for name in sorted(n for n in wheel.names if n.startswith(TARGETS + "asym/asym-")):
        add(name, np.maximum(rng.normal(0.0, SLIDER_SIGMA, DRAWS), 0.0))
    return people


def align(people: NDArray[np.float32], mean: Array, anchor: NDArray[np.bool_]) -> None:
    """Move every person (similarity, Umeyama 1991) onto ``mean`` at the ``anchor`` points, in place."""
    target = mean[anchor] - mean[anchor].mean(0)
    for person in people:
        source = person[anchor].astype(np.float64)
        centre = source.mean(0)
        source -= centre
        u, s, vt = np.linalg.svd(target.T @ source)
        flip = np.array([1.0, 1.0, np.linalg.det(u @ vt)])
        rotation = (u * flip) @ vt
        scale = (s * flip).sum() / (source**2).sum()
        person[:] = scale * (person - centre) @ rotation.T + mean[anchor].mean(0)


def identity_basis(
    people: NDArray[np.float32], mirror: NDArray[np.int64], anchor: NDArray[np.bool_], vertices: int
) -> tuple[Array, Array, float]:
    """Mean (P, 3) and unit-variance components (COMPONENTS, P, 3) of people and their mirror images.

    The population is closed under mirroring, so each component is symmetric or antisymmetric; the two kinds
    are analysed apart.  Only the first ``vertices`` points define the components, the others (joints) follow.
    """
    flip = np.array([-1.0, 1.0, 1.0], dtype=np.float32)

    def mirrored(x: NDArray[np.floating]) -> NDArray[np.floating]:
        return x[..., mirror, :] * flip

    mean = people.mean(0, dtype=np.float64)
    for _ in range(3):
        mean = 0.5 * (mean + mirrored(mean))
        align(people, mean, anchor)
        mean = people.mean(0, dtype=np.float64)
    mean = 0.5 * (mean + mirrored(mean))
    people = people - mean.astype(np.float32)
    sds, components = [], []
    for sign in (+1.0, -1.0):
        part = 0.5 * (people + np.float32(sign) * mirrored(people))
        seen = part[:, :vertices].reshape(len(part), -1)
        variance, rows = np.linalg.eigh(seen.astype(np.float64) @ seen.T)
        rows = rows[:, ::-1][:, :COMPONENTS]
        sds.append(np.sqrt(np.maximum(variance[::-1], 0.0) / len(part)))
        components.append(np.tensordot(rows.T, part, 1) / np.sqrt(len(part)))
    order = np.argsort(-np.concatenate([sd[:COMPONENTS] for sd in sds]))[:COMPONENTS]
    chosen = np.concatenate(components)[order]
    # A component has no sign of its own: make its largest coordinate positive, so that bakes repeat.
    peak = np.take_along_axis(
        chosen.reshape(COMPONENTS, -1), np.abs(chosen.reshape(COMPONENTS, -1)).argmax(1)[:, None], 1
    )
    chosen = chosen * np.sign(peak)[:, :, None]
    explained = (np.concatenate([sd[:COMPONENTS] for sd in sds])[order] ** 2).sum() / sum((sd**2).sum() for sd in sds)
    return mean, chosen, float(explained)
