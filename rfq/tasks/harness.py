"""The adapter to lm-evaluation-harness, extra lm-eval: the same scorer under its tasks.

    import lm_eval
    from rfq.tasks import harness
    model = harness.Harness("runs/demo/arms/residual_adamw/seed-0", spec="W8A8")
    lm_eval.simple_evaluate(model=model, tasks=["arc_easy"])

Importing this file registers it as `rfq`: simple_evaluate(model="rfq", model_args=
{"run": DIR, "spec": "W8A8"}).
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from lm_eval.api.model import TemplateLM  # pyright: ignore[reportMissingImports]
from lm_eval.api.registry import (  # pyright: ignore[reportMissingImports]
    register_model,
)

from rfq import metrics, ptq, runs, settings, sharding
from rfq.data import tokenize
from rfq.errors import InputError
from rfq.tasks import decode, questions, scoring

# The options of generation that are followed; any other is refused, not ignored.
_GENERATION = ("until", "max_gen_toks", "do_sample", "temperature", "top_p")


@register_model("rfq")
class Harness(TemplateLM):
    """A finished run under one quantization setting.

    Args:
        run: Its directory.
        spec: A WnAm setting.
        taps: Tap set, "" for the run's first.
        stream: Placement, "" for the run's first.
        data_dir: Where the prepared data are now, if not where they were.
        batch_size: Prompts that are continued at a time; scoring needs none.

    Raises:
        InputError: as `ptq.Sweep` and `settings.one`.
    """

    def __init__(
        self,
        run: str,
        spec: str = "FP",
        taps: str = "",
        stream: str = "",
        data_dir: str = "",
        batch_size: int | str = 8,
    ):
        super().__init__()
        run_dir = pathlib.Path(run)
        experiment, _ = runs.load(run_dir)
        if data_dir:
            data = dataclasses.replace(experiment.data, dir=data_dir)
            experiment = dataclasses.replace(experiment, data=data)
        runs.check(experiment)
        runs.require_finished(experiment, run_dir)
        self._setting = settings.one(experiment, spec, taps, stream)
        self._sweep = ptq.Sweep(experiment, run_dir)
        self._experiment = experiment
        self._tokens = tokenize.load(experiment.data.tokenizer)
        self._batch_size = int(batch_size)
        self._fingerprint = f"rfq-{self._tokens.fingerprint[:12]}"

    @property
    def eot_token_id(self) -> int:
        """What ends a text: the bos of the next one (D18)."""
        return self._tokens.bos_id

    @property
    def max_length(self) -> int:
        """Longest input."""
        return self._experiment.model.seq_len

    @property
    def tokenizer_name(self) -> str:
        """Name the tokenizer in the harness' caches."""
        return self._fingerprint

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None
    ) -> list[int]:
        """Return token ids, with bos in front unless it is refused."""
        ids = self._tokens.encode(string).tolist()
        return ids if add_special_tokens is False else [self._tokens.bos_id, *ids]

    def loglikelihood(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Sum each continuation's log-probabilities, and say whether it is greedy.

        The texts are tokenized at once; `TemplateLM` would call the tokenizer twice for
        each request.
        """
        del disable_tqdm
        pairs = [request.args for request in requests]
        answers = self._answers(scoring.encode(pairs, self._tokens))
        for pair, answer in zip(pairs, answers, strict=True):
            self.cache_hook.add_partial("loglikelihood", pair, answer)
        return answers

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
    ) -> list[tuple[float, bool]]:
        del disable_tqdm
        spans = [
            scoring.Span(np.array([*before, *after], np.int32), len(after), False)
            for _, before, after in requests
        ]
        return self._answers(spans)

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """Sum the log-likelihood of whole texts, each token scored once behind bos."""
        del disable_tqdm
        texts = [request.args[0] for request in requests]
        answers = self._answers(
            scoring.encode([("", text) for text in texts], self._tokens)
        )
        for text, (score, _) in zip(texts, answers, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), score)
        return [score for score, _ in answers]

    def _answers(self, spans: list[scoring.Span]) -> list[tuple[float, bool]]:
        if not spans:
            return []
        mesh = sharding.make_mesh(config=self._experiment.sharding)
        planned = questions.lay_out(self._experiment, spans, mesh)
        with metrics.progress("requests", len(planned.batches)) as bar:
            answers = self._sweep.answer(self._setting, planned, bar.update)
        return list(
            zip(answers.loglikelihood.tolist(), answers.is_greedy.tolist(), strict=True)
        )

    def generate_until(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[str]:
        """Continue each request up to the first of its stop texts.

        Raises:
            InputError: a request wants what the decoder does not do.
        """
        del disable_tqdm
        continuations: list[str] = [""] * len(requests)
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(repr(request.args[1]), []).append(number)
        for group in groups.values():
            for start in range(0, len(group), self._batch_size):
                numbers = group[start : start + self._batch_size]
                texts = [requests[number].args[0] for number in numbers]
                wishes = requests[numbers[0]].args[1]
                for number, text in zip(
                    numbers, self._continued(texts, wishes), strict=True
                ):
                    continuations[number] = text
                    args = requests[number].args
                    self.cache_hook.add_partial("generate_until", args, text)
        return continuations

    def _continued(self, texts: list[str], wishes: Mapping[str, Any]) -> list[str]:
        unknown = sorted(set(wishes) - set(_GENERATION))
        if unknown:
            raise InputError(
                f"generation cannot follow {unknown[0]}={wishes[unknown[0]]!r}; it "
                f"knows {', '.join(_GENERATION)}"
            )
        until = wishes.get("until", [])
        stops = [until] if isinstance(until, str) else list(until)
        ends = (self._tokens.bos_id, self._tokens.eos_id)
        sampled = wishes.get("do_sample", False)

        def text_of(ids: np.ndarray) -> str:
            text = self._tokens.decode(decode.until(ids, ends))
            places = [text.find(stop) for stop in stops if stop and stop in text]
            return text[: min(places)] if places else text

        def is_done(number: int, ids: np.ndarray) -> bool:
            del number
            whole = self._tokens.decode(ids)
            return bool(np.isin(ids, ends).any()) or text_of(ids) != whole

        # More than half of a sequence would leave the prompt too few tokens.
        most = min(int(wishes.get("max_gen_toks", 256)), self.max_length // 2)
        new = decode.generate(
            self._sweep.model(self._setting),
            [np.array(self.tok_encode(text), np.int32) for text in texts],
            max_new_tokens=most,
            sampling=decode.Sampling(
                temperature=float(wishes.get("temperature", 1.0)) if sampled else 0.0,
                top_p=float(wishes.get("top_p", 1.0)),
            ),
            is_done=is_done,
        )
        return [text_of(ids) for ids in new]
