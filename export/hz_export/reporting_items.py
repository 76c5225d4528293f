"""Which items of CLAIM 2024 and TRIPOD+AI a model card answers, and which are missing.

CLAIM 2024: Tejani et al., Radiology: Artificial Intelligence 6(4), e240300. TRIPOD+AI: Collins et al., BMJ
385, e078378. Numbers are those of the lists there (CLAIM 1 to 44; TRIPOD+AI 1 to 27c, 52 with their letters),
each of which is either in ITEMS or among those left out. Both lists are for papers: their items are put in
hz's words, and those that only a paper can answer are left out by number. Nothing is judged here but whether
the checkpoints and the manifest hold the answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hz_export.markdown import table

OF_PAPERS = "CLAIM 1, 2, 4, 6; TRIPOD+AI 1, 2, 3a, 4, 25, 27c"  # title, abstract, aims, interpretation
OF_OTHER_MODELS = "TRIPOD+AI 6c, 9c"  # treatments; predictors that somebody has to judge
OF_DIAGNOSES = "CLAIM 16 to 18, 38; TRIPOD+AI 8b, 8c, 13"  # annotators, rare outcomes
_DATA, _TRAINING, _SCORES = "Data: training", "Training", "Scores"  # sections of each network


@dataclass(frozen=True)
class Facts:
    """What a card is made from: the manifest, and the checkpoints' JSON by role."""

    manifest: Mapping[str, Any]
    metas: Mapping[str, Mapping[str, Any]]

    def every(self, *path: str) -> bool:
        """Whether every checkpoint holds something under these keys."""
        return all(_under(meta, path) for meta in self.metas.values())

    def scores(self) -> list[Mapping[str, Any]]:
        """Scores of all checkpoints, {"value", ...}, however deep they are nested."""
        return [score for meta in self.metas.values() for score in _leaves(meta.get("metrics") or {})]

    def every_score(self, key: str) -> bool:
        """Whether there are scores, for every network, and each has this key."""
        return self.every("metrics") and all(score.get(key) for score in self.scores())


@dataclass(frozen=True)
class Item:
    """What the guidelines ask for.

    numbers : of the items.  about : in hz's words.  place : section of the card that answers.
    known : whether this card's facts do.  lacking : what even an answered item leaves open.
    roles : networks that it is about; none for all.
    """

    numbers: str
    about: str
    place: str = ""
    known: Callable[[Facts], bool] = lambda _: False
    lacking: str = ""
    roles: tuple[str, ...] = ()


def _has_a_start(facts: Facts) -> bool:
    """Random weights by a seed, or those of another checkpoint."""
    return all(meta.get("started_from") or meta.get("seed") is not None for meta in facts.metas.values())


def _went_through_scanners(facts: Facts) -> bool:
    """Whether heads were scored that went through several scanners."""
    return "travelling_head" in str(_under(facts.metas.get("harmonizer", {}), ("metrics",)))


def _has(key: str) -> Callable[[Facts], bool]:
    return lambda facts: bool(facts.manifest.get(key))


ITEMS = (
    Item("CLAIM 3, 41; TRIPOD+AI 3b, 27b", "intended use, and by whom", "Intended use", _has("intended_use")),
    Item("TRIPOD+AI 3c, 14", "fairness: known inequalities between groups, and what was done about them"),
    Item("CLAIM 5", "whether the data were collected for this (prospective) or before it"),
    Item(
        "CLAIM 7; TRIPOD+AI 5a", "data sets", _DATA, lambda facts: facts.every("cohort", "training", "sites")
    ),
    Item("TRIPOD+AI 5b, 6a", "when and where people were scanned; kinds of centres"),
    Item("CLAIM 8; TRIPOD+AI 6b", "who was eligible, and who was excluded"),
    Item(
        "CLAIM 9, 10; TRIPOD+AI 7, 9a, 9b, 12b",
        "what the networks read, and its preparation",
        "Preparation",
        _has("recipe"),
    ),
    Item("CLAIM 11", "how scans were de-identified"),
    Item("CLAIM 12; TRIPOD+AI 11", "missing data: scans without an age, sequences that lack"),
    Item("CLAIM 13", "acquisition: scanners, field strengths, sequences"),
    Item("CLAIM 14, 15; TRIPOD+AI 8a", "how the truth was got: ages from which records, to what precision"),
    Item(
        "CLAIM 16 to 18; TRIPOD+AI 8b, 8c",
        "who made the diagnoses, whether blinded, how well they agree",
        roles=("diagnosis",),
    ),
    Item(
        "CLAIM 19, 20; TRIPOD+AI 12a",
        "how people were split, and that nobody is on both sides",
        _TRAINING,
        lambda facts: facts.every("split"),
    ),
    Item("CLAIM 21; TRIPOD+AI 10", "how many people were needed, and why"),
    Item(
        "CLAIM 22, 27; TRIPOD+AI 12c, 12g, 22",
        "the networks, and the networks themselves",
        "Files and their parity with the trained networks",
        lambda facts: facts.every("kind") and _has("models")(facts),
    ),
    Item("CLAIM 23", "versions of the software that trained"),
    Item("CLAIM 24", "where the weights started from", _TRAINING, _has_a_start),
    Item(
        "CLAIM 25",
        "training: schedule, losses, augmentation",
        _TRAINING,
        lambda facts: facts.every("schedule") and facts.every("settings"),
    ),
    Item("CLAIM 26", "how the final network was chosen among those that were tried"),
    Item(
        "CLAIM 28, 32; TRIPOD+AI 12e",
        "measures of performance, and on whom",
        _SCORES,
        lambda facts: facts.every_score("how"),
    ),
    Item(
        "CLAIM 29, 37; TRIPOD+AI 21, 23a",
        "their values, intervals and numbers of people",
        _SCORES,
        lambda facts: facts.every_score("ci95") and facts.every_score("n"),
        "scores of subgroups",
    ),
    Item("TRIPOD+AI 12d, 23b", "how much scores differ between sites"),
    Item("CLAIM 30", "robustness: the same heads through other scanners", _SCORES, _went_through_scanners),
    Item("CLAIM 31", "what in a scan an answer hangs on"),
    Item("CLAIM 33; TRIPOD+AI 16, 20c", "scores at sites that no weight has seen, and how these differ"),
    Item("CLAIM 34, 42; TRIPOD+AI 18c, 18d", "a protocol or a registration from before the training"),
    Item("CLAIM 35; TRIPOD+AI 20a", "how many people were left out on the way, and why"),
    Item(
        "CLAIM 36; TRIPOD+AI 20b",
        "people of each part: numbers, ages, sites",
        _DATA,
        lambda facts: facts.every("cohort", "training", "age_range"),
        "sex, ancestry, health",
    ),
    Item(
        "CLAIM 38",
        "sensitivity, specificity, AUC",
        _SCORES,
        lambda facts: bool(_under(facts.metas["diagnosis"], ("metrics",))),
        roles=("diagnosis",),
    ),
    Item("TRIPOD+AI 13", "what was done about a rare diagnosis", roles=("diagnosis",)),
    Item("CLAIM 39", "what went wrong in the worst cases"),
    Item("CLAIM 40; TRIPOD+AI 26", "limits of use", "Must not be used for", lambda _: True),
    Item(
        "TRIPOD+AI 27a",
        "scans that are unlike those of training",
        "Input range",
        _has("statistics"),
    ),
    Item(
        "TRIPOD+AI 12f, 24", "recalibration of ages", "Age-bias correction", _has("age_bias"), roles=("age",)
    ),
    Item(
        "TRIPOD+AI 15",
        "what an age means: how far it may be off",
        "Age interval",
        lambda facts: bool(_under(facts.manifest, ("age_interval", "raw"))),
        roles=("age",),
    ),
    Item(
        "CLAIM 43; TRIPOD+AI 18e, 18f",
        "on what terms data can be had; code and networks are at hand",
        "Licence of the training data",
        lambda facts: bool(facts.manifest.get("licence")) and "published" not in facts.manifest,
    ),
    Item("CLAIM 44; TRIPOD+AI 18a, 18b", "who paid, and whose interests are touched"),
    Item("TRIPOD+AI 17", "approval by an ethics committee, and consent"),
    Item("TRIPOD+AI 19", "part that patients and the public had in it"),
)


def reporting_items(manifest: Mapping[str, Any], metas: Mapping[str, Mapping[str, Any]]) -> str:
    """The body of the card's section: every item that applies, with the section that answers it.

    manifest : of the bundle.  metas : checkpoint JSON by role.
    """
    facts = Facts(manifest, metas)
    items = [item for item in ITEMS if not item.roles or set(item.roles) & set(metas)]
    rows = [(item.numbers, item.about, _answer(item, facts)) for item in items]
    missing = sum(answer == "missing" for _, _, answer in rows)
    elsewhere = (
        "" if "diagnosis" in metas else f" Without a network of diagnoses, {OF_DIAGNOSES} do not apply."
    )
    return (
        "What CLAIM 2024 and TRIPOD+AI want to be known of a model, in other words than theirs. Of "
        f"{len(rows)} subjects {missing} are missing: the checkpoints hold no answer, and nobody should take "
        f"one for granted. Left out are items for papers alone ({OF_PAPERS}) and for other kinds of models "
        f"({OF_OTHER_MODELS}).{elsewhere}\n\n" + table(("item", "what it is about", "on this card"), rows)
    )


def with_age_answers(card: str, manifest: Mapping[str, Any]) -> str:
    """A card with the answers of `manifest` to what is asked of ages, in place of those that it had."""
    facts = Facts(manifest, {})
    answers = {
        i.numbers: table((i.numbers, i.about, _answer(i, facts)), [()]) for i in ITEMS if i.roles == ("age",)
    }
    lines = card.split("\n")
    for place, line in enumerate(lines):
        for numbers, row in answers.items():
            if line.startswith(f"| {numbers} |"):
                lines[place] = row.split("\n")[0]
    missing = sum(line.startswith("| ") and line.endswith("| missing |") for line in lines)
    return re.sub(
        r"(?<=\bOf )(\d+) subjects \d+ are missing", rf"\1 subjects {missing} are missing", "\n".join(lines)
    )


def _answer(item: Item, facts: Facts) -> str:
    if not item.known(facts):
        return "missing"
    return item.place + (f"; missing: {item.lacking}" if item.lacking else "")


def _under(value: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _leaves(metrics: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for item in metrics.values():
        if isinstance(item, Mapping) and "value" not in item:
            yield from _leaves(item)
        else:
            yield item if isinstance(item, Mapping) else {"value": item}
