"""The trials of a search as a study of Optuna, in a journal that survives a kill.

Trial 0 is the settings as they are. Every other trial takes values from the space, chosen by the sampler from the
trials before it. A search that was killed goes on with the trial that it was in.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import fields
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from distill.runtime.config import parse, suggest
from distill.runtime.errors import UserError
from student.config import Config as StudentConfig
from student.jobs import identify_inputs
from student.search_config import JOURNAL, Config, read_settings

PLAN = "plan"  # attribute of the study: what its trials have in common
INPUTS = "inputs"  # of the plan


class TrialPlan:
    """Chooses the trials of one folder's search; `study` is Optuna's.

    Args:
        config: of the command.

    Raises:
        UserError: a space that is none; missing inputs of the student; or an earlier search of another plan, or on
            other inputs, in the folder.
    """

    def __init__(self, config: Config):
        self.config, self.space = config, distributions(config)
        self.student_config(extreme(self.space, "low"))  # refuses names and ends of ranges before the first training
        self.student_config(extreme(self.space, "high"))
        self.planned = self.planned_trials()
        # of the settings as they are: inputs that only other trials read are not compared
        self.inputs = identify_inputs(self.student_config({}))
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        config.folder.mkdir(parents=True, exist_ok=True)
        self.study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(config.folder / JOURNAL))), study_name="students",
            direction="maximize", load_if_exists=True,
        )  # fmt: skip
        self._check_plan()

    def _check_plan(self) -> None:
        config = self.config
        plan = {"student": read_settings(config.student), "variant": config.variant, "seed": config.seed}
        plan |= {"settings": config.settings, "space": config.space, "sampler": config.sampler}
        plan = json.loads(json.dumps(plan | {INPUTS: self.inputs}, default=str))
        # journals of earlier versions do not name the inputs: theirs are taken to be those of now
        earlier = plan | self.study.user_attrs.get(PLAN, {})
        different = [key for key in plan if plan[key] != earlier.get(key)]
        if different == [INPUTS]:
            before, now = earlier[INPUTS], plan[INPUTS]
            names = [name for name in before | now if before.get(name) != now.get(name)]
            raise UserError(
                f"{config.folder} holds trials that read other inputs than new ones would: {', '.join(names)} changed. "
                "Name another --output, or forget that search with --overwrite."
            )
        if different:
            raise UserError(
                f"{config.folder} holds a search with another {different[0]}: {earlier.get(different[0])}, now "
                f"{plan[different[0]]}. Name another --output, or forget that search with --overwrite."
            )
        self.study.set_user_attr(PLAN, plan)

    def next_trial(self) -> FrozenTrial | None:
        """Return the trial that was broken off, or a new one; None when all are done."""
        for trial in self.trials(TrialState.RUNNING):
            if trial.params.keys() == self.space.keys():
                return trial
            self.study.tell(trial.number, state=TrialState.FAIL)  # killed while its values were chosen
        number = len(self.trials(TrialState.COMPLETE))
        if number >= self.n_trials:
            return None
        if number < len(self.planned) and not self.trials(TrialState.WAITING):
            self.study.enqueue_trial(self.planned[number])
        # a sampler of its own for each trial: its choice depends on the trials before it, not on restarts
        self.study.sampler = self._sampler(number)
        number = self.study.ask(self.space).number
        return self.study.trials[number]

    def trials(self, state: TrialState) -> list[FrozenTrial]:
        """List the trials in a state, in order."""
        return [trial for trial in self.study.trials if trial.state == state]

    @property
    def n_trials(self) -> int:
        """Trials in all."""
        return min(self.config.trials, len(self.planned)) if self.config.sampler == "grid" else self.config.trials

    def planned_trials(self) -> list[dict[str, Any]]:
        """List the trials that no sampler chooses: the settings as they are, then the rest of a grid."""
        first = self.settings_as_they_are()
        if self.config.sampler != "grid":
            return [first]
        choices = [part.choices for part in self.space.values() if isinstance(part, CategoricalDistribution)]
        combinations = [dict(zip(self.space, values, strict=True)) for values in itertools.product(*choices)]
        return [first, *(values for values in combinations if values != first)]

    def settings_as_they_are(self) -> dict[str, Any]:
        """Return the searched settings of the student's file.

        Raises:
            UserError: a value lies outside its range, so the search could not start from it.
        """
        student = self.student_config({})
        values = {name: getattr(student, name) for name in self.space}
        for name, distribution in self.space.items():
            if not is_in_range(values[name], distribution):
                raise UserError(
                    f"--space {name}: {values[name]}, the present setting, is not in it; widen the range, or name "
                    f"another start with --settings {name}=VALUE."
                )
        return values

    def student_config(self, values: dict[str, Any]) -> StudentConfig:
        """Parse the student's config with these values.

        Raises:
            UserError: as the student's command would say.
        """
        return parse(StudentConfig, argv=["--config", str(self.config.student), *self.options(values)])

    def options(self, values: dict[str, Any]) -> list[str]:
        """Return the options of student/train.py for these values of searched settings."""
        words = ["--run", str(self.config.run), "--variant", self.config.variant]
        for name, value in (self.config.settings | values).items():
            words += [f"--{name}", value if isinstance(value, str) else json.dumps(value)]
        return words

    def _sampler(self, number: int) -> BaseSampler:
        seed = self.config.seed * 100_003 + number
        if self.config.sampler == "random":
            return RandomSampler(seed)
        return TPESampler(seed=seed, n_startup_trials=min(10, max(2, self.config.trials // 3)))


def distributions(config: Config) -> dict[str, BaseDistribution]:
    """Translate the space into Optuna's distributions.

    Raises:
        UserError: an empty space, a setting that no student has, or a range that is none.
    """
    if not config.space:
        raise UserError("--space is empty; give settings and their ranges, such as gamma: {low: 0.01, high: 1}.")
    known = [item.name for item in fields(StudentConfig)]
    result: dict[str, BaseDistribution] = {}
    for name, part in config.space.items():
        if name not in known:
            raise UserError(f"--space: a student has no setting {name!r}. {suggest(name, known)}")
        try:
            result[name] = distribution(part, config.sampler)
        except (TypeError, ValueError, KeyError) as error:
            raise UserError(
                f"--space {name}: expected {{low: A, high: B}}, with log: true if wanted, or {{choices: [A, B]}}, got "
                f"{part} ({error})."
            ) from None
    return result


def distribution(part: dict[str, Any], sampler: str) -> BaseDistribution:
    """Translate one range.

    Raises:
        KeyError: low, high or choices is missing.
        TypeError: they are of no usable type.
        ValueError: they are no range, or keys are unknown.
    """
    if "choices" in part:
        if set(part) != {"choices"} or not part["choices"]:
            raise ValueError("choices stand alone, and at least one is needed")
        return CategoricalDistribution(part["choices"])
    if sampler == "grid":
        raise ValueError("a grid needs choices")
    unknown = set(part) - {"low", "high", "log"}
    if unknown:
        raise ValueError(f"unknown: {', '.join(sorted(unknown))}")
    low, high, log = part["low"], part["high"], bool(part.get("log", False))
    if low >= high:
        raise ValueError("low is not below high")
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log)
    return FloatDistribution(float(low), float(high), log)


def is_in_range(value: Any, part: BaseDistribution) -> bool:
    """Tell whether a range holds a value."""
    if isinstance(part, CategoricalDistribution):
        return value in part.choices
    return isinstance(value, int | float) and part.low <= value <= part.high


def extreme(space: dict[str, BaseDistribution], end: Literal["low", "high"]) -> dict[str, Any]:
    """Return one end of every range; of choices the first or last."""
    place = 0 if end == "low" else -1
    return {
        name: part.choices[place] if isinstance(part, CategoricalDistribution) else getattr(part, end)
        for name, part in space.items()
    }
