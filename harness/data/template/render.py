"""Rows to rendered text with loss weights, by the checkpoint's own chat template."""

from collections.abc import Sequence
from typing import Any

from harness.data.config import AgentTemplate, LossScale
from harness.data.row import Media, Row
from harness.data.row_error import RowError
from harness.data.template import loss_scale as weights
from harness.data.template.agent import hermes, spell_out
from harness.data.template.agent.call import dump
from harness.data.template.agent.registry import FORMATS
from harness.data.template.chat import ChatTemplate, check_shown, check_text
from harness.data.template.control import ControlTokens
from harness.data.template.conversation import Conversation, has_system, plain_turns
from harness.data.template.segment import HEADER, PLACEHOLDER, Piece, Segment, merge, without_media
from harness.data.template.system import system_text
from harness.errors import UserError, reject

_TOOL_ROLES = ("tool_call", "tool_response")


class Renderer:
    """Applies a checkpoint's chat template; travels to other processes."""

    def __init__(
        self,
        tokenizer: Any,
        *,
        system: str | None = None,
        agent_template: AgentTemplate = AgentTemplate.hermes,
        loss_scale: LossScale = LossScale.default,
        response_prefix: str | None = None,
    ) -> None:
        """Checks the settings.

        Args:
            tokenizer: The checkpoint's, with its chat template.
            system: System message of rows that have none of their own: text, or path of a .txt file.
            agent_template: How tools, calls and results become text.
            loss_scale: Which tokens carry loss.
            response_prefix: Text with which every answer begins; it belongs to the prompt.

        Raises:
            UserError: A setting can not be used with this checkpoint.
        """
        if tokenizer.chat_template is None:
            raise UserError("model.path: the checkpoint's tokenizer has no chat template, so rows can not be rendered")
        if agent_template is not AgentTemplate.hermes and agent_template not in FORMATS:
            remedy = "marks its turns with tokens that Qwen3-VL lacks; hermes is Qwen3-VL's own format"
            raise reject("data.agent_template", agent_template.name, remedy)
        self.tokenizer = tokenizer
        self.system = system_text(system)
        self.agent_template = agent_template
        self.loss_scale = loss_scale
        self.prefix = response_prefix or ""
        self._template = ChatTemplate(tokenizer)
        self._control = ControlTokens(tokenizer)
        self._knows_tools: bool | None = None
        for key, text in (("system", self.system or ""), ("response_prefix", self.prefix)):
            if found := self._control.find(text):
                raise reject(f"data.{key}", text, f"holds the control token {found!r}; remove it or space it out")

    def render(self, row: Row) -> tuple[Segment, ...]:
        """Renders one row.

        Returns:
            Segments whose texts joined give the whole text.

        Raises:
            RowError: The row can not be rendered as it stands.
        """
        found = self.render_many([row])[0]
        if isinstance(found, RowError):
            raise found
        return found

    def render_many(self, rows: Sequence[Row]) -> list[tuple[Segment, ...] | RowError]:
        """Renders rows, each for itself: an error takes the place of a row that can not be rendered."""
        prepared = [self._prepare(row) for row in rows]
        together = [item.turns for item in prepared if isinstance(item, Conversation) and not item.tools]
        texts = iter(self._template.apply_together(together))
        found: list[tuple[Segment, ...] | RowError] = []
        for row, item in zip(rows, prepared, strict=True):
            if not isinstance(item, Conversation):
                found.append(item)
                continue
            text = None if item.tools else next(texts)
            try:
                found.append(self._segments(row, item, self._template.apply(row, item) if text is None else text))
            except RowError as error:
                found.append(error)
        return found

    def render_prompt(self, row: Row) -> tuple[str, str]:
        """Renders what stands before the last answer.

        Returns:
            The text, up to and with the generation prompt and `response_prefix`, and the answer.

        Raises:
            RowError: The row can not be rendered, has no answer, or begins with its only one.
        """
        item = self._prepare(row)
        if isinstance(item, RowError):
            raise item
        if not isinstance(item, Conversation) or not item.answers:
            raise RowError(row.origin, "no prompt", "has no assistant turn, so there is no answer to generate")
        before = Conversation(item.turns[: item.answers[-1].turn], tools=item.tools)
        if all(turn["role"] == "system" for turn in before.turns) and not has_system(row):
            detail = "begins with its only assistant turn, so there is no prompt to answer; add a user turn"
            raise RowError(row.origin, "no prompt", detail)
        text = self._template.apply(row, before, prompt=True)
        check_shown(row, before, text)
        text = self._with_prefixes(text, len(item.answers) - 1)
        said, answer = self._last_words(row, item)
        skip = len(self.prefix) if (said + answer).startswith(self.prefix) else 0
        if not text.endswith(self.prefix):
            text += self.prefix
        return text + said[skip:], answer[max(skip - len(said), 0) :]

    def _prepare(self, row: Row) -> Conversation | tuple[Segment, ...] | RowError:
        """Makes turns of a row; a plain one is rendered at once."""
        try:
            weights.check_weights(self.loss_scale, row)
            self._control.check(row)
            if row.plain:
                return self._plain(row)
            if row.tools or any(message.role in _TOOL_ROLES for message in row.messages):
                return self._with_tools(row)
            return plain_turns(row, self.system)
        except RowError as error:
            return error

    def _plain(self, row: Row) -> tuple[Segment, ...]:
        """Renders a text that is learnt as it stands, with the token that ends texts."""
        if self.tokenizer.eos_token is None:
            raise UserError("model.path: the checkpoint's tokenizer has no end token, so plain text can not be learnt")
        pieces: list[Piece] = []
        weight = 1.0
        for message in row.messages:
            weight = 1.0 if message.weight is None else message.weight
            pieces += [(PLACEHOLDER[part] if isinstance(part, Media) else part, weight) for part in message.parts]
        pieces.append((self.tokenizer.eos_token, weight))
        check_text(row, "".join(text for text, _ in pieces))
        return tuple(merge(without_media(pieces)))

    def _with_tools(self, row: Row) -> Conversation:
        if self.agent_template is AgentTemplate.hermes:
            if self._knows_tools is None:
                self._knows_tools = hermes.knows_tools(self.tokenizer)
            if not self._knows_tools:
                remedy = "the checkpoint's chat template shows no tools; choose another format, such as react_en"
                raise reject("data.agent_template", "hermes", remedy)
            conversation = hermes.turns(row, self.system)
        else:
            conversation = spell_out.turns(row, self.system, FORMATS[self.agent_template])
        try:
            text = dump([conversation.tools, conversation.turns])
        except (TypeError, ValueError, RecursionError) as error:
            raise RowError(row.origin, "tools", f"a tool is no JSON ({error})") from error
        # JSON spells a character in several ways, so a call can hold a token that its message does not show.
        self._control.refuse(row, "a tool or a call contains", text)
        return conversation

    def _segments(self, row: Row, conversation: Conversation, text: str) -> tuple[Segment, ...]:
        """Weighs rendered text; segments begin behind each header, and where the weight changes."""
        around, answers = self._template.cut(row, conversation, text)
        outside = 1.0 if self.loss_scale is LossScale.all else 0.0
        runs: list[list[Piece]] = [[]]
        for number, (rendered, answer) in enumerate(zip(answers, conversation.answers, strict=True)):
            runs[-1].append((around[number] + self.prefix, outside))
            parts = self._template.parts(row, answer, rendered)
            pieces = weights.weigh_answer(self.loss_scale, parts, number < conversation.num_earlier)
            runs.append(_behind(pieces, self.prefix) if self.prefix and rendered.startswith(self.prefix) else pieces)
        runs[-1].append((around[-1], outside))
        media = bool(row.images or row.videos)
        return tuple(segment for run in runs for segment in merge(without_media(run) if media else run))

    def _with_prefixes(self, text: str, num_answers: int) -> str:
        """Lets the first answers of a text begin with `response_prefix`."""
        first, *others = text.split(HEADER)
        for number, answer in enumerate(others[:num_answers]):
            others[number] = answer if answer.startswith(self.prefix) else self.prefix + answer
        return HEADER.join([first, *others])

    def _last_words(self, row: Row, conversation: Conversation) -> tuple[str, str]:
        """Returns what stands in the last answer in front of what the model writes last, and that."""
        parts = list(conversation.answers[-1].parts)
        while not parts[-1].written:
            parts.pop()
        if any(part.call for part in parts):
            return "", self._template.cut(row, conversation, self._template.apply(row, conversation))[1][-1]
        first = max((number + 1 for number, part in enumerate(parts) if not part.written), default=0)
        return "".join(part.text for part in parts[:first]), "".join(part.text for part in parts[first:])


def _behind(pieces: list[Piece], prefix: str) -> list[Piece]:
    """Leaves out what an answer begins with: it stands with the prompt."""
    kept = []
    skip = len(prefix)
    for text, weight in pieces:
        kept.append((text[skip:], weight))
        skip = max(skip - len(text), 0)
    return kept
