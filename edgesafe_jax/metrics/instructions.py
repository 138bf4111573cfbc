r"""Verifiers of instructions that a program can check, under the names and with the arguments of IFEval.

Written for this project from the descriptions in the paper; where a description leaves something open (how sentences
are split, what a word is), the rule is stated at the function. 24 of the paper's 25 instructions are here;
`language:response_language` needs a language detector and is not.

Zhou et al., "Instruction-Following Evaluation for Large Language Models", arXiv 2311.07911, 2023, table 1.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from edgesafe_jax.errors import ConfigError, lookup

Verifier: TypeAlias = Callable[..., bool]
"""From a response, and the arguments of the instruction by keyword, to whether it is followed."""


def _words(text: str) -> list[str]:
    """Runs of letters, digits and underscores."""
    return re.findall(r"\w+", text)


def _sentences(text: str) -> list[str]:
    """Parts behind full stops, exclamation marks, question marks and line breaks that hold a letter or digit."""
    return [part for part in re.split(r"(?<=[.!?])\s+|\n+", text) if re.search(r"\w", part)]


def _compares(count: int, relation: str, bound: int) -> bool:
    """`relation` is "at least" or "less than", the two of the paper."""
    return {"at least": count >= bound, "less than": count < bound}[relation]


def _count(text: str, word: str) -> int:
    return len(re.findall(rf"\b{re.escape(word)}\b", text, re.IGNORECASE))


def _includes(text: str, *, keywords: Sequence[str]) -> bool:
    return all(_count(text, word) > 0 for word in keywords)


def _repeats(text: str, *, keyword: str, frequency: int, relation: str) -> bool:
    return _compares(_count(text, keyword), relation, frequency)


def _avoids(text: str, *, forbidden_words: Sequence[str]) -> bool:
    return not any(_count(text, word) for word in forbidden_words)


def _letters(text: str, *, letter: str, let_frequency: int, let_relation: str) -> bool:
    return _compares(text.lower().count(letter.lower()), let_relation, let_frequency)


def _num_sentences(text: str, *, num_sentences: int, relation: str) -> bool:
    return _compares(len(_sentences(text)), relation, num_sentences)


def _num_words(text: str, *, num_words: int, relation: str) -> bool:
    return _compares(len(_words(text)), relation, num_words)


def _num_paragraphs(text: str, *, num_paragraphs: int) -> bool:
    """Paragraphs are divided by lines of three asterisks; an empty one in the middle counts as wrong."""
    parts = [part.strip() for part in re.split(r"\s?\*\*\*\s?", text.strip())]
    parts = parts[not parts[0] : len(parts) - (len(parts) > 1 and not parts[-1])]
    return all(parts) and len(parts) == num_paragraphs


def _first_word(text: str, *, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Paragraphs are divided by empty lines."""
    parts = [part.strip() for part in re.split(r"\n\s*\n", text) if part.strip()]
    if len(parts) != num_paragraphs or not 1 <= nth_paragraph <= num_paragraphs:
        return False
    found = _words(parts[nth_paragraph - 1])
    return bool(found) and found[0].lower() == first_word.lower()


def _num_placeholders(text: str, *, num_placeholders: int) -> bool:
    return len(re.findall(r"\[[^\[\]\n]+\]", text)) >= num_placeholders


def _postscript(text: str, *, postscript_marker: str) -> bool:
    """A line that begins with the marker, such as P.S., with or without spaces in it."""
    letters = r"\s*".join(re.escape(letter) for letter in postscript_marker if not letter.isspace())
    return re.search(rf"^\s*{letters}", text, re.IGNORECASE | re.MULTILINE) is not None


def _num_bullets(text: str, *, num_bullets: int) -> bool:
    return len(re.findall(r"^\s*(?:\*(?!\*)|-(?!-))\s*\S", text, re.MULTILINE)) == num_bullets


_CONSTRAINED = ("My answer is yes.", "My answer is no.", "My answer is maybe.")


def _constrained(text: str) -> bool:
    return any(answer in text for answer in _CONSTRAINED)


def _num_highlights(text: str, *, num_highlights: int) -> bool:
    """Text between single or double asterisks on one line."""
    double = re.findall(r"\*\*[^*\n]*\S[^*\n]*\*\*", text)
    single = re.findall(r"\*[^*\n]*\S[^*\n]*\*", re.sub(r"\*\*[^*\n]*\*\*", "", text))
    return len(double) + len(single) >= num_highlights


def _num_sections(text: str, *, section_spliter: str, num_sections: int) -> bool:
    return len(re.findall(rf"\b{re.escape(section_spliter)}\s*\d+", text)) >= num_sections


def _is_json(text: str) -> bool:
    """JSON, with or without the fence of a code block around it."""
    match = re.fullmatch(r"```(?:json)?\s*(.*?)\s*```", text.strip(), re.IGNORECASE | re.DOTALL)
    try:
        json.loads(match.group(1) if match else text)
    except ValueError:
        return False
    return True


def _has_title(text: str) -> bool:
    return any(title.strip() for title in re.findall(r"<<([^\n<>]+)>>", text))


def _two_responses(text: str) -> bool:
    """Exactly two different texts divided by six asterisks."""
    parts = [part.strip() for part in text.split("******")]
    return len(parts) == 2 and all(parts) and parts[0] != parts[1]


def _repeats_prompt(text: str, *, prompt_to_repeat: str) -> bool:
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def _ends_with(text: str, *, end_phrase: str) -> bool:
    return text.strip().strip('"').strip().lower().endswith(end_phrase.strip().lower())


def _capital_words(text: str, *, capital_frequency: int, capital_relation: str) -> bool:
    return _compares(sum(word.isupper() for word in _words(text)), capital_relation, capital_frequency)


def _in_capitals(text: str) -> bool:
    return text.isupper()


def _in_lowercase(text: str) -> bool:
    return text.islower()


def _no_comma(text: str) -> bool:
    return "," not in text


def _quoted(text: str) -> bool:
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


VERIFIERS: dict[str, Verifier] = {
    "keywords:existence": _includes,
    "keywords:frequency": _repeats,
    "keywords:forbidden_words": _avoids,
    "keywords:letter_frequency": _letters,
    "length_constraints:number_sentences": _num_sentences,
    "length_constraints:number_paragraphs": _num_paragraphs,
    "length_constraints:number_words": _num_words,
    "length_constraints:nth_paragraph_first_word": _first_word,
    "detectable_content:number_placeholders": _num_placeholders,
    "detectable_content:postscript": _postscript,
    "detectable_format:number_bullet_lists": _num_bullets,
    "detectable_format:constrained_response": _constrained,
    "detectable_format:number_highlighted_sections": _num_highlights,
    "detectable_format:multiple_sections": _num_sections,
    "detectable_format:json_format": _is_json,
    "detectable_format:title": _has_title,
    "combination:two_responses": _two_responses,
    "combination:repeat_prompt": _repeats_prompt,
    "startend:end_checker": _ends_with,
    "startend:quotation": _quoted,
    "change_case:capital_word_frequency": _capital_words,
    "change_case:english_capital": _in_capitals,
    "change_case:english_lowercase": _in_lowercase,
    "punctuation:no_comma": _no_comma,
}
"""The verifiers by the name of the instruction. One function and one entry add one."""


def follows(response: str, instruction: str, arguments: Mapping[str, Any], *, loose: bool = False) -> bool:
    """Checks whether a response follows an instruction.

    Args:
      response: the response; the empty one follows nothing.
      instruction: a name in `VERIFIERS`.
      arguments: of the instruction, by name.
      loose: whether it also counts where only the response without its first line, its last line, both or its asterisks
        follows it, as in section 2.2 of the paper.

    Returns:
      Whether it is followed.

    Raises:
      ConfigError: an unknown instruction, or arguments that it does not have.

    Example:
      >>> follows("No commas here.", "punctuation:no_comma", {})
      True
    """
    verify = lookup(VERIFIERS, instruction, "instruction")
    lines = response.split("\n")
    variants = [response]
    if loose:
        variants += ["\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1])]
        variants += [variant.replace("*", "") for variant in variants]
    try:
        return any(bool(variant.strip()) and verify(variant, **arguments) for variant in variants)
    except (TypeError, KeyError) as error:
        raise ConfigError(f"The instruction {instruction!r} with the arguments {dict(arguments)}: {error}.") from None


def last_number(text: str) -> str | None:
    """Returns the last number of a text without separators and trailing zeros of a fraction, or None.

    Example:
      >>> last_number("That makes $1,200.50 in all, or 24.00 a day.")
      '24'
    """
    found = re.findall(r"-?\d[\d,]*(?:\.\d+)?", text)
    if not found:
        return None
    number = found[-1].replace(",", "")
    return number.rstrip("0").rstrip(".") if "." in number else number
