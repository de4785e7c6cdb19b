"""Keras Tuner's oracles, one an outer fold, behind one door: search settings in, the next values to try out.

Needs the extra ``tune`` (keras-tuner). The oracles themselves are Keras Tuner's own. What is added: their files are
written whole or not at all, a trial that was cut off is handed out again, and one chief serves all outer folds, so that
no worker waits at a fold's border.

Glossary:
    oracle: what proposes values to try, and learns how they did.
    trial: one set of values, scored in every inner fold. Its identity is OUTER-NUMBER, such as 0-07.
    chief, workers: the processes of a parallel search. The chief holds the oracles; workers ask it over the network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import keras_tuner
from keras_tuner.engine.trial import Trial, TrialStatus

from mgkeras.runs import store
from mgkeras.tuning.trials import Span

UNFINISHED = (TrialStatus.RUNNING, TrialStatus.INVALID)
OBJECTIVE = keras_tuner.Objective("score", "max")


class _Kept(keras_tuner.Oracle):
    """Mixed into an oracle: keeps its trials and its state in a folder, each file whole, and goes on from there."""

    folder: Path

    def keep_in(self, folder: Path) -> None:
        """Names the folder and reads what an earlier process left there; half a trial is handed out again.

        Keras Tuner writes a trial before oracle.json, so a process may end between the two: a trial that began only
        in its own file is drawn anew, and one that ended only there has ended.
        """
        self.folder, self.verbose = folder, 0
        if not (folder / "oracle.json").exists():
            return
        state = store.read_json(folder / "oracle.json")
        states = (store.read_json(folder / f"trial_{name}" / "trial.json") for name in state["start_order"])
        self.trials = {trial.trial_id: trial for trial in map(Trial.from_state, states)}
        self.set_state(state)
        unfinished = [name for name, trial in self.trials.items() if trial.status in UNFINISHED]
        ended = [name for name in self.trials if name not in unfinished and name not in self.end_order]
        if ended:
            self.end_order += ended
            self._run_times.update(dict.fromkeys(ended, 1))
            self.save()
        self.ongoing_trials: dict[str, Trial] = {}
        for name in unfinished:  # without its score, which would be written twice
            trial = self.trials[name]
            self.trials[name] = Trial(trial.hyperparameters, name, trial.status)
        self._retry_queue = unfinished[::-1]

    def save(self) -> None:
        """Writes oracle.json; what Keras Tuner keeps in a set is sorted, so that the same search has the same bytes."""
        state = self.get_state()
        store.write_json(self.folder / "oracle.json", {**state, "tried_so_far": sorted(state["tried_so_far"])})

    def _save_trial(self, trial: Trial) -> None:
        store.write_json(self.folder / f"trial_{trial.trial_id}" / "trial.json", trial.get_state())


class _Random(_Kept, keras_tuner.oracles.RandomSearchOracle):
    pass


class _Bayesian(_Kept, keras_tuner.oracles.BayesianOptimizationOracle):
    pass


class _Hyperband(_Kept, keras_tuner.oracles.HyperbandOracle):
    pass


def make_oracle(method: str, spans: Sequence[Span], trials: int | None, epochs: int, seed: int) -> _Kept:
    """One of Keras Tuner's oracles.

    Args:
        method: 'random', 'bayesian' or 'hyperband'.
        spans: what is searched.
        trials: at most so many; None, for hyperband only: one whole sweep.
        epochs: of a whole training; hyperband stops most trials after a share of them.
        seed: 0 or more. Keras Tuner takes 0 for no seed, hence one is added.
    """
    values = keras_tuner.HyperParameters()
    for span in spans:
        values.Float(span.name, span.low, span.high, sampling="log" if span.log else "linear")
    failures = 10**9  # a trial that diverged is a result: it ends no search
    common = {
        "objective": OBJECTIVE,
        "hyperparameters": values,
        "seed": seed + 1,
        "max_consecutive_failed_trials": failures,
    }
    if method == "hyperband":
        oracle = _Hyperband(max_epochs=epochs, **common)
        oracle.max_trials = trials
        return oracle
    return {"random": _Random, "bayesian": _Bayesian}[method](max_trials=trials, **common)


class FoldOracles(keras_tuner.Oracle):
    """An oracle an outer fold, as one: a trial comes from the first fold that has one left.

    Args:
        oracles: from make_oracle, in the outer folds' order.
        folder: fold_K in it is where each is kept; None for a worker, whose oracles are the chief's.
        ended: called with the identity and status of each trial that ends.
    """

    def __init__(self, oracles: Sequence[_Kept], folder: Path | None, ended: Callable[[str, str], None]) -> None:
        super().__init__(objective=OBJECTIVE, hyperparameters=oracles[0].hyperparameters, seed=1)
        self.verbose, self.oracles, self.ended = 0, tuple(oracles), ended
        if folder is not None:
            for fold, oracle in enumerate(self.oracles):
                oracle.keep_in(folder / f"fold_{fold}")

    @keras_tuner.synchronized
    def create_trial(self, tuner_id: str) -> Trial:
        """The worker's own trial where it was cut off, a new one, or one of status IDLE or STOPPED."""
        if tuner_id in self.ongoing_trials:
            return self.ongoing_trials[tuner_id]
        self.tuner_ids.add(tuner_id)
        status = TrialStatus.STOPPED
        for fold, oracle in enumerate(self.oracles):
            trial = oracle.create_trial(tuner_id)
            if trial.status == TrialStatus.RUNNING:
                self.ongoing_trials[tuner_id] = Trial(trial.hyperparameters, f"{fold}-{trial.trial_id}", trial.status)
                return self.ongoing_trials[tuner_id]
            if trial.status == TrialStatus.IDLE:
                status = TrialStatus.IDLE
        if status == TrialStatus.STOPPED:
            self.tuner_ids.discard(tuner_id)  # the chief ends when no worker is left
        return Trial(self.get_space(), "none", status)

    @keras_tuner.synchronized
    def update_trial(self, trial_id: str, metrics: dict[str, float], step: int = 0) -> Trial:
        """Tells the fold's oracle how a trial did."""
        oracle, own = self._of(trial_id)
        return oracle.update_trial(own, metrics, step=step)

    @keras_tuner.synchronized
    def end_trial(self, trial: Trial) -> None:
        """Ends a trial; its worker is free for another."""
        oracle, own = self._of(trial.trial_id)
        oracle.end_trial(Trial(trial.hyperparameters, own, trial.status, trial.message))
        for tuner_id in [name for name, ongoing in self.ongoing_trials.items() if ongoing.trial_id == trial.trial_id]:
            del self.ongoing_trials[tuner_id]
        self.ended(trial.trial_id, trial.status)

    def get_trial(self, trial_id: str) -> Trial:
        """A trial by its identity."""
        oracle, own = self._of(trial_id)
        return oracle.get_trial(own)

    def save(self) -> None:
        """Each fold's oracle keeps itself."""

    def _set_project_dir(self, directory: str, project_name: str) -> None:
        """Each fold's oracle has its folder."""

    def _of(self, trial_id: str) -> tuple[_Kept, str]:
        fold, own = trial_id.split("-", 1)
        return self.oracles[int(fold)], own
