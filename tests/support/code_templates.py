"""Chat templates that write calls of tools as code, or with ids and numbers in them."""

_TURNS = """\
{%- for tool in tools or [] %}{{ tool | tojson }}{% endfor %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content }}
    {%- if message.tool_calls %}CALLS{% endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""


def _with_calls(calls: str) -> str:
    return _TURNS.replace("CALLS", calls)


JSON = _with_calls("""
        {{- '[' }}
        {%- for call in message.tool_calls %}
            {{- call.function.name + '(' }}
            {%- for name, value in call.function.arguments.items() %}
                {{- name + '=' + value | tojson + (', ' if not loop.last else '') }}
            {%- endfor %}
            {{- ')' + (', ' if not loop.last else ']') }}
        {%- endfor %}""")
"""The code that JSON is, in a list with nothing before it."""

PYTHON = _with_calls("""
        {{- '<tool_call>[' }}
        {%- for call in message.tool_calls %}
            {{- call.function.name + '(' }}
            {%- for name, value in call.function.arguments.items() %}
                {{- name + '=' }}
                {%- if value is string %}{{ "'" + value + "'" }}
                {%- elif value is mapping %}{{ value | tojson }}
                {%- else %}{{ value | string }}
                {%- endif %}
                {{- ', ' if not loop.last else '' }}
            {%- endfor %}
            {{- ')' + (', ' if not loop.last else '') }}
        {%- endfor %}
        {{- ']</tool_call>' }}""")
"""Strings in quotes, whatever they hold, and otherwise what Python writes."""

LINES = _with_calls("""
        {{- '<calls>\\n' }}
        {%- for call in message.tool_calls %}
            {{- call.function.name + '(' }}
            {%- for name, value in call.function.arguments.items() %}
                {{- name + '=' }}
                {%- if value is string %}
                    {{- "'" + (value | replace('\\\\', '\\\\\\\\') | replace("'", "\\\\'")) + "'" }}
                {%- else %}{{ value | tojson }}
                {%- endif %}
                {{- ', ' if not loop.last else '' }}
            {%- endfor %}
            {{- ')\\n' }}
        {%- endfor %}
        {{- '</calls>' }}""")
"""A call in each line, with strings in which quotes are escaped."""

BRACES = _with_calls("""
        {%- for call in message.tool_calls %}
            {{- '<tool_call>call:' + call.function.name + '{' }}
            {%- for name, value in call.function.arguments.items() %}
                {{- name + ':' }}
                {%- if value is string %}{{ '<arg_key>' + value + '<arg_key>' }}
                {%- else %}{{ value | tojson }}
                {%- endif %}
                {{- ',' if not loop.last else '' }}
            {%- endfor %}
            {{- '}</tool_call>' }}
        {%- endfor %}""")
"""Strings between tokens."""

QUOTED = _with_calls("""
        {{- '[' }}
        {%- for call in message.tool_calls %}
            {{- call.function.name + '(' }}
            {%- for name, value in call.function.arguments.items() %}
                {{- name + '="' + value | string + '"' + (', ' if not loop.last else '') }}
            {%- endfor %}
            {{- ')' + (', ' if not loop.last else ']') }}
        {%- endfor %}""")
"""All in quotes, whatever it is."""

UNQUOTED = QUOTED.replace("""'="'""", "'='").replace("""+ '"' +""", "+")
"""Nothing in quotes."""

NAMED = _with_calls("""
        {{- '<calls>' }}
        {%- for call in message.tool_calls %}
            {{- '<tool_call>' + call.id + '<with>' + call.function.arguments | tojson }}
            {{- '</tool_call>' }}
        {%- endfor %}
        {{- '</calls>' }}""")
"""The ids of calls, and not their names."""

COUNTED = _with_calls("""
        {{- '[TOOL_CALLS] [\\n' }}
        {%- for call in message.tool_calls %}
            {{- '    {"number": "' ~ loop.index0 ~ '", "tool": "' ~ call.function.name }}
            {{- '", "parameters": ' + call.function.arguments | tojson + '}' }}
            {{- ',\\n' if not loop.last else '\\n]' }}
        {%- endfor %}""")
"""Objects of JSON with the number of a call."""

LABELLED = _with_calls("""
        {%- for call in message.tool_calls %}
            {{- '[TOOL_CALLS]' + call.id + '[CALL_ID]' + call.function.name }}
            {{- '[ARGS]' + call.function.arguments | tojson }}
        {%- endfor %}""")
"""An id before the name."""

CODE_TEMPLATES = {
    "json": JSON,
    "python": PYTHON,
    "lines": LINES,
    "braces": BRACES,
    "quoted": QUOTED,
}
ID_TEMPLATES = {
    "named": NAMED,
    "counted": COUNTED,
    "labelled": LABELLED,
}
