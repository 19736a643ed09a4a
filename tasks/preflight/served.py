"""Checks of teachers behind endpoints whose token distributions are used.

Their weights are not here: a tokenizer stands for each, the student's or a named one. It is written
to data/preflight/teachers/<teacher>/tokenizer, from where `adapt` takes it. Each service is asked
for its list of models, which costs nothing and says what it can score.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from cohobate.backends.endpoint import Endpoint, ServiceAddress
from cohobate.backends.scoring import SCORES_CANDIDATES
from cohobate.backends.service_kind import serves_path, service_kind
from cohobate.backends.settings import GenerateParams
from cohobate.backends.token_names import TokenIds, same_model
from cohobate.data.records import TEACHERS, TOKENIZER
from cohobate.errors import UserError
from cohobate.models import checkpoints, hub
from cohobate.models.model_info import difference
from cohobate.models.vocabularies import template_hash
from cohobate.progress import say
from cohobate.students.initialization import StudentInit
from cohobate.teachers.signal_store.forms import StoredTopK
from cohobate.teachers.signal_store.label_form import StoredLabels
from cohobate.teachers.signal_store.settings import CaptureParams
from cohobate.teachers.teacher import Teacher, Teachers
from tasks.preflight.phases import shares_vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from cohobate.methods.phase import Phase


def check_served(
    teachers: Teachers,
    init_student: StudentInit,
    phases: "Mapping[str, Phase]",
    generate: GenerateParams,
    capture: CaptureParams,
) -> None:
    """Check each served teacher with signals, and write its tokenizer.

    Raises:
        UserError: a form, a decoding, a tokenizer or a service with which there are no signals.
    """
    for key, teacher in teachers.items():
        if teacher.served_signals is None:
            continue
        _check_form(key, teacher, capture)
        _check_requests(key, teacher, generate)
        address = ServiceAddress(teacher.endpoint, teacher.key, teacher.model, teacher.revision)
        _check_service(key, teacher, address)
        _check_candidates(key, address, phases)
        student = init_student.preview_tokenizer(teachers)
        tokenizer = student
        if teacher.tokenizer:
            tokenizer = checkpoints.load_tokenizer(hub.resolve(teacher.tokenizer, weights=False))
            if shares_vocabulary(key, phases):
                _check_tokenizers(key, tokenizer, student)
        if not TokenIds(tokenizer).texts_differ:
            say(
                f"the teacher {key}: its tokenizer does not tell tokens apart by their text: "
                "signals come from services that send ids (vLLM with scoring: vllm, llama.cpp) or "
                "bytes (OpenAI)"
            )
        with checkpoints.staged(TEACHERS / key / TOKENIZER) as partial:
            tokenizer.save_pretrained(partial)


def _check_form(key: str, teacher: Teacher, capture: CaptureParams) -> None:
    from cohobate.backends.served_capture import form_error

    form = capture.signals
    if isinstance(form, StoredLabels):
        raise UserError(
            f"the teacher {key} is behind an endpoint: the likelihoods of labels need its weights, "
            "and votes need its text alone",
            where="params.yaml, capture.signals",
            fix="cohobate run --set 'capture.signals={type: labels, by: votes}' "
            f"--set teachers.{key}.signals=false --set generate.samples=8 "
            "--set generate.decoding.temperature=1",
        )
    if not isinstance(form, StoredTopK) or form.temperatures != (1.0,):
        raise form_error(key)
    if form.k > teacher.top_logprobs:
        say(
            f"the teacher {key}: {teacher.top_logprobs} ids a token are stored, as many as are "
            f"requested (teachers.{key}.top_logprobs), not {form.k}"
        )


def _check_requests(key: str, teacher: Teacher, generate: GenerateParams) -> None:
    where, signals = f"params.yaml, teachers.{key}", teacher.served_signals
    if not isinstance(generate.backend_of(key), Endpoint):
        raise UserError(
            f"the teacher {key} is behind an endpoint, and generate.backend is not",
            where="params.yaml, generate.backend",
            fix="cohobate run --set 'generate.backend={type: openai}'",
        )
    if signals is None or signals.scoring != "none" or signals.come_with(generate.decoding):
        return
    raise UserError(
        f"the log-probabilities of {key}'s answers would be those of another temperature: some "
        "services send them as they were sampled from",
        where=f"{where}, and generate.decoding",
        fix="cohobate run --set generate.decoding.temperature=1 --set generate.decoding.top_p=1; "
        f"or teachers.{key}.scoring: vllm or sglang, where the service is one",
    )


def _check_service(key: str, teacher: Teacher, address: ServiceAddress) -> None:
    """Refuse a service that does not score as `scoring` says, or does not have the model."""
    kind = service_kind(address)
    if not kind.server:
        what = f"did not say ({kind.problem})" if kind.problem else "does not say"
        say(f"the teacher {key}: its service {what} which server it is: no check of `scoring`")
        return
    if teacher.scoring not in (kind.scoring, "none"):
        raise UserError(
            f"the service of the teacher {key} is {kind.server}, which does not score text by "
            f"requests of the kind {teacher.scoring}",
            where=f"{teacher.endpoint}, and params.yaml, teachers.{key}.scoring",
            fix=f"cohobate run --set teachers.{key}.scoring={kind.scoring}",
        )
    if kind.scoring != teacher.scoring:
        say(
            f"the teacher {key}: its service is {kind.server}, which can score text that it did "
            f"not generate: --set teachers.{key}.scoring={kind.scoring}"
        )
    # SGLang takes any name
    if kind.server != "SGLang" and not any(same_model(teacher.model, m) for m in kind.models):
        raise UserError(
            f"the service of the teacher {key} has no model {teacher.model}: it has "
            f"{', '.join(kind.models[:5])}",
            where=f"{teacher.endpoint}, and params.yaml, teachers.{key}.model",
            fix=f"cohobate run --set teachers.{key}.model={kind.models[0]}",
        )


def _check_candidates(key: str, address: ServiceAddress, phases: "Mapping[str, Phase]") -> None:
    """Refuse a vLLM that does not score candidates, where a phase has the student choose them."""
    for name, phase in phases.items():
        candidates = getattr(getattr(phase, "sampling", None), "candidates", 0)
        if not candidates or phase.targets != f"models/adapt/{key}":
            continue
        if serves_path(address, SCORES_CANDIDATES) is False:
            raise UserError(
                f"the service of the teacher {key} does not score candidates: it has no "
                f"{SCORES_CANDIDATES}",
                where=f"{address.url}, and params.yaml, {name}.sampling.candidates",
                fix=f"VLLM_USE_V2_MODEL_RUNNER=1 vllm serve {address.model} --enable-scale-out "
                f"--max-logprobs {candidates + 1}; or cohobate run --set "
                f"{name}.sampling.candidates=0",
            )


def _check_tokenizers(
    key: str, teacher: "PreTrainedTokenizerBase", student: "PreTrainedTokenizerBase"
) -> None:
    """Refuse a tokenizer that means something else by its ids, or ends answers differently."""
    between, where = f"teacher {key} and student", f"params.yaml, teachers.{key}.tokenizer"
    fix = "leave it out where the student's tokenizer is the teacher's; or `signals: false`"
    if odd := difference(teacher.get_vocab(), student.get_vocab()):
        raise UserError(f"{between} have different vocabularies: {odd}", where=where, fix=fix)
    if teacher.eos_token != student.eos_token:
        message = f"{teacher.eos_token!r} and {student.eos_token!r}"
        raise UserError(f"{between} end an answer differently: {message}", where=where, fix=fix)
    if template_hash(teacher) != template_hash(student):
        raise UserError(f"{between} have different chat templates", where=where, fix=fix)
