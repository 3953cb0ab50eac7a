"""Python functions as tools of a model."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterable
from typing import Any

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, create_model
from pydantic_core import to_json

from sessionsdb.errors import InvalidArgument


class FunctionTool:
    """A function that a model may call.

    Its name, the first paragraph of its docstring and its parameters are the definition. Each
    parameter needs a type. Raises ``InvalidArgument`` for a function that can't be a tool.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.name = _name(function)
        self._function = function
        fields: dict[str, Any] = {}
        for parameter in _parameters(self.name, function):
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                raise InvalidArgument(f"tool {self.name}: a model can't give *args or **kwargs")
            if parameter.kind is parameter.POSITIONAL_ONLY:
                raise InvalidArgument(f"tool {self.name}: {parameter.name} is positional-only")
            if parameter.name == "model_config":  # pydantic would take it for its own
                raise InvalidArgument(f"tool {self.name}: a parameter can't be model_config")
            if parameter.annotation is parameter.empty:
                raise InvalidArgument(f"tool {self.name}: parameter {parameter.name} has no type")
            if parameter.name.startswith("_") and parameter.default is parameter.empty:
                raise InvalidArgument(f"tool {self.name}: a model can't give {parameter.name}")
            default = ... if parameter.default is parameter.empty else parameter.default
            fields[parameter.name] = (parameter.annotation, default)
        try:
            model = create_model(self.name, __config__=ConfigDict(extra="forbid"), **fields)
            self._arguments: TypeAdapter[Any] = TypeAdapter(model)
            self._arguments.json_schema()
        except (PydanticUserError, NameError, TypeError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            raise InvalidArgument(
                f"tool {self.name}: no schema for its parameters: {reason}"
            ) from error

    @property
    def description(self) -> str:
        """The first paragraph of the docstring."""
        return (inspect.getdoc(self._function) or self.name).partition("\n\n")[0]

    def schema(self) -> dict[str, Any]:
        """Return the JSON schema of the arguments."""
        schema = self._arguments.json_schema()
        schema.pop("title", None)
        return schema

    async def run(self, arguments: str) -> str:
        """Call the function with arguments in JSON, and return its result as text.

        A function that is not async runs in a thread. A result that is no text is JSON. Raises
        the error of the function, and ``ValueError`` for wrong arguments.
        """
        given = self._arguments.validate_json(arguments or "{}")
        values = {name: getattr(given, name) for name in type(given).model_fields}
        if inspect.iscoroutinefunction(self._function):
            result = await self._function(**values)
        else:
            result = await asyncio.to_thread(self._function, **values)
            if inspect.isawaitable(result):  # a decorator hides that the function is async
                result = await result
        return result if isinstance(result, str) else to_json(result).decode()


def _name(function: Any) -> str:
    name = getattr(function, "__name__", None)
    if not callable(function) or not isinstance(name, str):
        raise InvalidArgument(f"a tool must be a function with a name, not {function!r}")
    return name


def _parameters(name: str, function: Callable[..., Any]) -> Iterable[inspect.Parameter]:
    try:
        return inspect.signature(function, eval_str=True).parameters.values()
    except NameError as error:
        raise InvalidArgument(
            f"tool {name}: a type can't be read: {error}; import it outside of `if TYPE_CHECKING`"
        ) from None
    except (ValueError, TypeError) as error:  # a function of C
        raise InvalidArgument(f"tool {name}: its parameters can't be read: {error}") from error


def function_tools(functions: Iterable[Callable[..., Any]]) -> dict[str, FunctionTool]:
    """Return the tools by name. Raises ``InvalidArgument`` if two have one name."""
    if not isinstance(functions, Iterable):
        raise InvalidArgument(f"tools must be a list of functions, not {functions!r}")
    tools: dict[str, FunctionTool] = {}
    for function in functions:
        tool = FunctionTool(function)
        if tool.name in tools:
            raise InvalidArgument(f"two tools have the name {tool.name}")
        tools[tool.name] = tool
    return tools
