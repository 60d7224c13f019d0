"The page of messages: what it lists is said by a cell or has a source, and what it advises exists."
import json, re
from pathlib import Path
import pytest
from llmft.commands.cli import app
from llmft.config.config import Config, DatasetConfig
from llmft.tokens.findings import FINDINGS
from typer.main import get_command

PAGE = Path(__file__).parent.parent/'nbs/book/08_what_went_wrong.ipynb'
CELLS = json.loads(PAGE.read_text(encoding='utf-8'))['cells']
LIST, LAST = '## Find a message', '## What llmft does by itself'


def source(cell): return ''.join(cell['source'])
def output(cell): return ''.join(''.join(o.get('text', [])) for o in cell.get('outputs', []))
def anchor(head): return re.sub(r'\s+', '-', re.sub(r'[^\w\s-]', '', head.lower()).strip())


def entries():
    "{anchor: (prose, outputs)} of each `###`."
    found, name = {}, None
    for cell in CELLS:
        if cell['cell_type'] == 'code':
            if name: found[name][1].append(output(cell))
            continue
        text = source(cell)
        if text.startswith(LIST): continue
        for part in re.split(r'^(?=#{2,3} )', text, flags=re.M):
            if head := re.match(r'(#{2,3}) (.+)', part):
                name = anchor(head[2]) if head[1] == '###' else None
                if name: found[name] = ['', []]
            if name: found[name][0] += part + '\n'
    return found


def rows():
    "(message, anchor) of each line of the list."
    text = next(source(c) for c in CELLS if source(c).startswith(LIST))
    return [(message.strip(), target) for _, message, target in
            re.findall(r'^- \[(`+)(.+?)\1\]\(#([^)]+)\)$', text, re.M)]


ENTRIES, ROWS = entries(), rows()


def advice(): return [re.search(r'\*\*With llmft\.\*\* (.+)', prose)[1] for prose, _ in ENTRIES.values()]


@pytest.mark.parametrize('message, target', ROWS, ids=[message[:60] for message, _ in ROWS])
def test_message_is_said_or_has_a_source(message, target):
    prose, outputs = ENTRIES[target]
    if any(message in text for text in outputs): return
    assert message in prose and re.search(r'^Source.*\]\(https://', prose, re.M), message


def test_most_messages_are_made_on_the_page():
    made = [m for m, target in ROWS if any(m in text for text in ENTRIES[target][1])]
    assert len(ROWS) >= 70 and len(made) >= 50
    assert {target for _, target in ROWS} == {*ENTRIES} # each entry is in the list
    assert all(all(f'**{word}.** ' in prose for word in ('Why', 'Cure', 'With llmft')) for prose, _ in ENTRIES.values())


def test_keys_exist():
    known = {*Config.model_fields, *DatasetConfig.model_fields}
    values = {'drop', 'truncate', 'split', 'cpu', 'generate', 'true', 'nan', *FINDINGS}
    named = {name for text in advice() for name in re.findall(r'`([a-z0-9_]+)(?:: [^`]+)?`', text)}
    assert len(named) > 25 and not named - known - values, named - known - values
    table = next(source(c) for c in CELLS if LAST in source(c)).split(LAST)[1]
    last_columns = [row.rsplit('|', 2)[-2] for row in table.splitlines() if row.startswith('|')]
    keys = {name for text in last_columns for name in re.findall(r'`([a-z0-9_]+)(?:: \w+)?`', text)}
    assert keys - {'skip'} <= known, keys - known


def test_commands_and_their_options_exist():
    commands = get_command(app).commands
    named = re.findall(r'`!?llmft ([a-z-]+)((?: [^`\n]+)?)`', '\n'.join(advice()))
    assert len(named) > 15
    for command, rest in named:
        options = {name for p in commands[command].params for name in p.opts}
        assert {*re.findall(r'--[a-z-]+', rest)} <= options, (command, rest)


def test_page_ends_with_what_to_read_next_and_has_hidden_solutions():
    assert source(CELLS[-1]).startswith('## What to read next')
    text = '\n'.join(map(source, CELLS))
    assert text.count('<details><summary>Solution</summary>') == text.count('</details>') == 3
    assert re.search(r'on two cores \(\d+ seconds of computing, measured', text) and 'on a T4: not measured' in text
