"""How the tools of a request shape and parse its answer."""

from dataclasses import dataclass

import msgspec

from loramux.errors import FailedPreconditionError
from loramux.v1 import generation_pb2
from loramux_server.chat.messages import Tool
from loramux_server.field_errors import wrong
from loramux_server.forms.form import MAX_BYTES, Form, FormKind
from loramux_server.services.generation.forms import form_of
from loramux_server.tools.addressed import AddressedSyntax
from loramux_server.tools.addressed_form import form_of_addressed
from loramux_server.tools.addressed_reader import AddressedReader
from loramux_server.tools.call_reader import CallReader
from loramux_server.tools.form import ANY_TEXT, Otherwise, UnknownToolSchemaError, form_of_calls
from loramux_server.tools.reader import Reader
from loramux_server.tools.rules import LargeRulesError
from loramux_server.tools.syntax import ToolSyntax
from loramux_server.wire.model_info import ModelInfo


@dataclass(frozen=True, slots=True)
class ToolUse:
    """The tools that the model is shown."""

    syntax: ToolSyntax | AddressedSyntax
    tools: tuple[Tool, ...]
    is_parallel: bool
    """Whether an answer may have several calls."""
    has_own_tokens: bool = False
    """Whether calls use tokens that only the adapter has, which forms do not support."""

    def reader(self) -> Reader:
        """Return the parser of tool calls for a completion."""
        most = None if self.is_parallel else 1
        if isinstance(self.syntax, AddressedSyntax):
            return AddressedReader(self.syntax, most=most)
        return CallReader(self.syntax, self.tools, most=most)

    def form(self, request: generation_pb2.GenerateRequest, model: ModelInfo) -> Form | None:
        """Return the form of the answer to `request`, which has tools; None for free text.

        Raises:
            InvalidArgumentError: What is asked for is not supported with tools.
            FailedPreconditionError: It is not supported with this adapter's tokens.
        """
        choice, params = request.tool_choice, request.sampling
        is_named = choice.WhichOneof("choice") == "name"
        otherwise = _answer(form_of(params))
        if is_named or choice.mode == generation_pb2.TOOL_MODE_REQUIRED:
            if params.HasField("structured_output"):
                raise wrong(
                    "sampling.structured_output",
                    "is set; expected none when tool_choice requires a call",
                )
            otherwise = None
        elif otherwise == ANY_TEXT and not any(tool.is_strict for tool in self.tools):
            return None
        if self.has_own_tokens:
            raise FailedPreconditionError(
                "calls must match their schemas (tool_choice, strict), but this adapter writes "
                "them with tokens that the base model lacks, which cannot be enforced",
                reason="CHAT_TEMPLATE_FAILED",
                field="tools",
            )
        _check_ends(params, model)
        tools = [tool for tool in self.tools if not is_named or tool.name == choice.name]
        # A tool that is demanded by name is called once.
        is_parallel = self.is_parallel and not is_named
        try:
            if isinstance(self.syntax, AddressedSyntax):
                return form_of_addressed(self.syntax, tools, otherwise)
            return form_of_calls(self.syntax, tools, otherwise, is_parallel=is_parallel)
        except UnknownToolSchemaError as error:
            raise wrong(
                f"tools[{self.tools.index(error.tool)}].parameters",
                f"{error}; this is not supported when calls must match their schemas and the chat "
                "template writes each parameter separately",
            ) from None
        except LargeRulesError:
            raise wrong(
                "tools", f"make a grammar of more than {MAX_BYTES} bytes; expected at most that "
                "when calls must match their schemas",
            ) from None  # fmt: skip


def _answer(form: Form | None) -> Otherwise:
    """Return what an answer other than a call may be, given the `form` that is asked for.

    Raises:
        InvalidArgumentError: The form is not supported beside tools.
    """
    if form is None:
        return ANY_TEXT
    if form.kind is FormKind.JSON_OBJECT:
        return {"type": "object"}
    if form.kind is FormKind.JSON_SCHEMA:
        schema: dict[str, object] = msgspec.json.decode(form.text)
        return schema
    raise wrong(form.field, "is set; expected json_schema or json_object with tools")


def _check_ends(params: generation_pb2.SamplingParams, model: ModelInfo) -> None:
    """Check that the answer can end where its calls do."""
    if not model.eos_token_ids:
        raise wrong(
            "tool_choice",
            "requires a call, which is not supported: the base model has no end token",
        )
    for name, is_set in (("min_tokens", params.min_tokens), ("ignore_eos", params.ignore_eos)):
        if is_set:
            raise wrong(f"sampling.{name}", "is set; expected none when calls must match schemas")
