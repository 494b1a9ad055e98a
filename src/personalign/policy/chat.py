"""From chat messages to token ids and back, in one place: template, BOS, EOS, and no forged special tokens."""

from __future__ import annotations

from typing import Any

from personalign.contracts import UserError
from personalign.types import Messages

# Private-use characters: no template treats them as anything but text.
_MARK = "\ue0f0{}\ue0f1"


def special_texts(tokenizer: Any) -> set[str]:
    """Every text that the tokenizer would read as one special token."""
    added = tokenizer.added_tokens_decoder.values()
    return {t.content for t in added if t.special} | set(tokenizer.all_special_tokens)


def encode_chat(tokenizer: Any, messages: Messages, answer_next: bool = True) -> list[int]:
    """Token ids of a chat, ready for the assistant's turn when `answer_next`.

    User text that spells a special token is tokenised as plain text, so that it can end no turn and open none.
    """
    rows = [{"role": m.role, "content": m.content} for m in messages]
    if tokenizer.chat_template is None:
        return encode_plain(tokenizer, "\n\n".join(m.content for m in messages))
    specials = special_texts(tokenizer)
    if not any(s in m.content for m in messages for s in specials):
        return list(_template(tokenizer, rows, answer_next, tokenize=True))
    marked = [{**row, "content": _MARK.format(i)} for i, row in enumerate(rows)]
    text = _template(tokenizer, marked, answer_next, tokenize=False)
    ids: list[int] = []
    for i, message in enumerate(messages):
        before, found, text = text.partition(_MARK.format(i))
        if not found:
            raise UserError(f"the chat template of this tokenizer drops the {message.role} turn")
        ids += tokenizer(before, add_special_tokens=False)["input_ids"]
        ids += tokenizer(message.content, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return ids + list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _template(tokenizer: Any, rows: list[dict[str, str]], answer_next: bool, tokenize: bool) -> Any:
    try:
        return tokenizer.apply_chat_template(
            rows,
            add_generation_prompt=answer_next,
            tokenize=tokenize,
            **({"return_dict": False} if tokenize else {}),
        )
    except Exception as error:  # jinja's errors have no common base that is worth an import
        raise UserError(f"the chat template of this model refuses these turns: {error}") from error


def encode_plain(tokenizer: Any, text: str) -> list[int]:
    """Prompt ids for a base model without a template: its BOS, if it has one, then the text."""
    bos = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
    return bos + encode_text(tokenizer, text)


def encode_text(tokenizer: Any, text: str) -> list[int]:
    """Ids of text alone: no BOS, no EOS, special tokens read as plain text."""
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])


def stop_ids(tokenizer: Any, generation_config: Any) -> tuple[int, ...]:
    """The ids that end an answer: the tokenizer's EOS and what the model's generation config adds."""
    extra = getattr(generation_config, "eos_token_id", None)
    ids = extra if isinstance(extra, (list, tuple)) else [extra]
    return tuple(sorted({i for i in [tokenizer.eos_token_id, *ids] if i is not None}))
