"""What llmft makes of a row under the settings of another system.

`encode_like` translates the settings into llmft's own and calls its public functions. It holds no formatting of its
own: a translator is a function of a line that returns `(keys of the Config, keys of its DatasetConfig)`.
"""
import gzip, json, tempfile
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Callable

from llmft.prompts.chat import chat_messages, resolve_chat_template
from llmft.config.config import load_config
from llmft.prompts.turns import control_tokens
from llmft.tokens.tokenize import IGNORE_INDEX, encode_columns

DATA = Path(__file__).parent/'fixtures'


def axolotl(type, line):
    cfg, dataset = line['config']['cfg'], line['config']['dataset']
    keys = {k: v for k, v in cfg.items() if v is not None}
    if keys.get('excess_length_strategy') == 'raise': keys['excess_length_strategy'] = 'error'
    if type == 'reflection': keys['allow_merged_tokens'] = True # question and answer are tokenized together
    chatml = dataset.get('conversation') == 'chatml'
    source = {k: v for k, v in dataset.items() if v is not None and k != 'conversation'}
    return keys, source | ({'type': 'alpaca_chat.load_conversation_chatml'} if chatml else {})


def stanford(type, line): # and those who took its code
    return {'sequence_len': line['config']['model_max_length'], 'excess_length_strategy': 'truncate',
            'empty_answers': 'keep', 'allow_merged_tokens': True}, {'type': type}


def trl(type, line):
    sft = line['config']['sft_config']
    strategy = {'keep_start': 'truncate', 'keep_end': 'keep_end'}[sft.get('truncation_mode', 'keep_start')]
    keys = {
        'sequence_len': sft.get('max_length', 1024) or 1 << 24, 'excess_length_strategy': strategy,
        'empty_answers': 'keep', 'allow_merged_tokens': 'trained',
        'train_on_inputs': sft.get('completion_only_loss') is False}
    return keys, {'type': type, 'field': sft.get('dataset_text_field', 'text')}


def axolotl_chat(type, line):
    keys, source = axolotl(type, line)
    if source.get('train_on_eos') == 'none' and source.get('roles_to_train') == []:
        source['roles_to_train'] = ['nobody']
    if line['config']['dataset'].get('train_on_eos', '') is None: source['train_on_eos'] = 'none'
    if 'roles' in source: # there they replace the usual names
        named = {name for names in source['roles'].values() for name in names}
        source['roles'] = {name: [name] for name in ('human', 'gpt') if name not in named} | source['roles']
    return {'eot_tokens': [], 'allow_merged_tokens': 'trained', 'empty_answers': 'keep'} | keys, source


def trl_chat(type, line):
    keys, _ = trl(type, line)
    train_all = not line['config']['sft_config'].get('assistant_only_loss')
    source = {'chat_template_jinja': line['config']['chat_template']}
    if 'conversations' in line['record']: # the roles keep their names
        source |= {'field_messages': 'conversations', 'message_property_mappings': {'role': 'from', 'content': 'value'},
                   'roles': {'human': ['human'], 'gpt': ['gpt']}}
    if 'prompt' in line['record']:
        if train_all: source |= {'roles_to_train': [], 'train_on_eos': 'none'}
        return keys, source | {'type': 'prompt_completion_chat'}
    return keys | {'train_on_inputs': train_all}, source | {'type': 'messages' if train_all else 'chat_template'}


def fastchat(type, line): # and WizardLM, who took its code
    return {'sequence_len': line['config']['model_max_length'], 'excess_length_strategy': 'truncate',
            'allow_merged_tokens': True}, {'type': type}


def llamafactory(type, line):
    # its proportional cut, `mask_history`, and the sentence that it adds to OpenAI's messages have no counterpart
    family = 'llamafactory' if line['config']['formatting'] == 'alpaca' else 'llamafactory_chat'
    return {'sequence_len': 2048, 'excess_length_strategy': 'truncate', 'empty_answers': 'keep',
            'train_on_inputs': line['config']['data_args'].get('train_on_prompt', False)}, {'type': f'{family}:{type}'}


TRANSLATORS = { # (peer, type) -> translator; None stands for every other type of that peer
    ('axolotl', None): axolotl,
    ('stanford_alpaca', 'alpaca'): lambda type, line: stanford('stanford_alpaca', line),
    ('codealpaca', 'alpaca'): lambda type, line: stanford('codealpaca', line),
    ('wizardlm', 'freeform'): lambda type, line: stanford('wizardlm_freeform', line),
    ('wizardlm', 'training_src_train'): lambda type, line: stanford('wizardlm', line),
    ('wizardlm', 'wizardcoder'): lambda type, line: stanford('wizardcoder', line),
    ('wizardlm', 'wizardmath'): lambda type, line: stanford('wizardmath', line),
    **{('axolotl', type): axolotl_chat for type in ('chat_template', 'sharegpt')},
    ('fastchat', 'vicuna_v1.1'): fastchat,
    ('wizardlm', 'freeform_multiturn'): lambda type, line: fastchat('wizardlm_multiturn', line),
    **{('trl', type): trl_chat for type in ('messages', 'sharegpt', 'conversational_prompt_completion')},
    ('trl', 'text'): trl,
    ('llamafactory', None): llamafactory,
    ('trl', 'prompt_completion'): trl,
}


PADDED = {('axolotl', 'llama2_chat')} # its rows are filled up to the full length before they are batched


def is_known(peer, type, line):
    "Can the settings of a line be translated?"
    if peer == 'llamafactory':
        if line['config']['formatting'] == 'openai': return False
        if {'cutoff_len', 'mask_history'} & line['config']['data_args'].keys(): return False
    return (peer, type) in TRANSLATORS or (peer, None) in TRANSLATORS


def config_like(peer, type, line):
    "The llmft `Config` for a line."
    translate = TRANSLATORS.get((peer, type)) or TRANSLATORS[peer, None]
    keys, source = translate(type, line)
    dataset = {'path': 'rows.jsonl', **source}
    return load_config({'base_model': line['config']['tokenizer'], 'datasets': [dataset], **keys})


def encode_like(
    peer,      # whose settings they are, as `axolotl`
    type,      # its name for the format
    line,      # `record`: the row, `config`: the settings
    tokenizer, # the tokenizer that the other system was given
    **changes, # keys of the `Config` that are set differently
) -> list: # of (input_ids, labels), one pair for each row that comes out
    "The rows that llmft would train on."
    config = load_config(config_like(peer, type, line), **changes)
    columns = {name: [value] for name, value in line['record'].items()}
    table = encode_columns(columns | {'source': [0], 'row': [0]}, tokenizer, config).to_pydict()
    rows = zip(table['input_ids'], table['labels'], table['reason'])
    rows = [(ids, labels) for ids, labels, reason in rows if reason is None]
    if (peer, type) not in PADDED: return rows
    def fill(values, value): return values + [value] * (config.sequence_len - len(values))
    return [(fill(ids, tokenizer.pad_token_id), fill(labels, IGNORE_INDEX)) for ids, labels in rows]


# Where the others are wrong. A case is recognised by a rule; what llmft does instead is stated so that it can be
# checked: with `changes` to its settings it gives what the other system gives once that is put right by `mend`.

@dataclass(eq=False)
class Row:
    "A row as another system was given it, and what it made of it."
    peer: str
    type: str
    line: dict       # `record` and `config`
    want: list       # of (input_ids, labels)
    tokenizer: object

    def texts(self): # every text in the record
        def walk(value):
            if isinstance(value, str): yield value
            elif isinstance(value, (list, dict)):
                for v in value.values() if isinstance(value, dict) else value: yield from walk(v)
        return list(walk(self.line['record']))

    def spells_control(self):
        return any(token in text for token in control_tokens(self.tokenizer) for text in self.texts())


@dataclass
class Case:
    "Something that another system does wrong."
    peers: str          # who
    case: str           # what they do
    llmft: str          # what llmft does
    why: str
    applies: Callable   # `Row` -> bool
    mend: Callable = lambda row, want: want       # what they should have made of the row
    changes: Callable = lambda row: {}            # settings under which llmft is compared


def _is_masked(row): return all(label == IGNORE_INDEX for _, labels in row.want for label in labels)

def _last_ids(row): return row.want[-1][0] if row.want else []

def _count_ends(row): # how many end tokens stand in the last row at the end, and how many tokens behind them
    ids, eos = _last_ids(row), row.tokenizer.eos_token_id
    n_behind = next((n for n, i in enumerate(reversed(ids[-2:])) if i == eos), len(ids))
    n_ends = next((n for n, i in enumerate(reversed(ids[:len(ids) - n_behind])) if i != eos), 0)
    return n_ends, n_behind

def _change_last(want, change): # `change`: of the ids and the labels of the last row
    return want and want[:-1] + [tuple(change(values) for values in want[-1])]

def _with_one_end(row, want): # the same rows with one of these end tokens
    n_ends, n_behind = _count_ends(row)
    def change(values): return values[:len(values) - n_behind - n_ends + 1] + values[len(values) - n_behind:]
    return _change_last(want, change)

def _without_first(row, want): return _change_last(want, lambda values: values[1:])

def _is_replaced(row): # a last question under the settings where Axolotl takes the last message for the answer
    source = row.line['config'].get('dataset', {})
    if row.peer != 'axolotl' or source.get('roles_to_train') != [] or source.get('train_on_eos', '') is not None:
        return False
    dataset = config_like(row.peer, row.type, row.line).datasets[0]
    return chat_messages(row.line['record'], dataset)[-1].message['role'] != 'assistant'

def _render(row, source, messages): # text, ids, (start, stop) of each id in the text
    text = row.tokenizer.apply_chat_template(messages, tokenize=False, chat_template=resolve_chat_template(source))
    encoded = row.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return text, encoded['input_ids'], encoded['offset_mapping']

def _dummy_compared(row, source, messages, i): # the tokens of a message that `[[dummy_message]]` would change
    dummy_message = {'role': messages[i]['role'], 'content': '[[dummy_message]]'}
    _, ids, _ = _render(row, source, messages[:i + 1])
    _, dummy, _ = _render(row, source, messages[:i] + [dummy_message])
    n = min(len(ids), len(dummy))
    n_same = next((k for k in range(n) if ids[k] != dummy[k]), None)
    n_same_at_end = next((k for k in range(n) if ids[-1 - k] != dummy[-1 - k]), None)
    if n_same is None or n_same_at_end is None: return range(0)
    return range(n_same, len(ids) - n_same_at_end)

@lru_cache(1)
def _read_chat(row): # (settings, source, messages, are they learned, text, its ids, (start, stop) of each)
    config = config_like(row.peer, row.type, row.line)
    source = config.datasets[0]
    messages = chat_messages(row.line['record'], source)
    roles = {{'gpt': 'assistant', 'human': 'user'}.get(r, r) for r in source.roles_to_train}
    def is_learned(m): return m.train if m.train is not None else config.train_on_inputs or m.message['role'] in roles
    learned, messages = [is_learned(m) for m in messages], [m.message for m in messages]
    return config, source, messages, learned, *_render(row, source, messages)

def _misplaced(row): # -> [(message, tokens that Axolotl takes for it, its tokens)] where these differ
    if row.peer != 'axolotl' or row.type not in ('chat_template', 'sharegpt'): return []
    if _is_replaced(row) or _rewrites(row): return []
    config, source, messages, learned, text, ids, offsets = _read_chat(row)
    all_ends, out, pos = 'all' in (source.train_on_eos, source.train_on_eot), [], 0
    for i, m in enumerate(messages):
        content = m['content'] if m['content'] in text[pos:] else m['content'].strip()
        start = text.find(content, pos)
        if start < 0: continue
        pos = start + len(content)
        if not learned[i] and not all_ends: continue
        if start > 0 and text[start - 1] == ' ': start -= 1
        inside = [k for k, (a, b) in enumerate(offsets) if a < pos and b > start]
        taken = _dummy_compared(row, source, messages, i)
        if not content.strip(): inside = [k for k in taken if not text[slice(*offsets[k])].strip(' ')]
        if taken and [*taken] != inside or not taken and content.strip(): out.append((i, taken, inside))
    return out

def _learn_whole_contents(row, want): # labels on the contents, and on the end token behind each
    config, source, _, learned, *_ = _read_chat(row)
    ids, labels = want[0][0], list(want[0][1])
    end_ids = row.tokenizer.convert_tokens_to_ids([row.tokenizer.eos_token, *config.eot_tokens])
    options = {source.train_on_eos, source.train_on_eot or source.train_on_eos}
    for i, taken, inside in _misplaced(row):
        for k in taken: labels[k:k + 1] = [IGNORE_INDEX] * (k < len(ids))
        behind = range(inside[-1] + 1, min(inside[-1] + 4, len(ids))) if inside else ()
        end = [k for k in behind if ids[k] in end_ids][:1]
        is_last = 'last' in options and not any(learned[i + 1:])
        learns_end = 'all' in options or learned[i] and 'turn' in options or is_last
        for k in inside * bool(learned[i]) + end * learns_end:
            if k < len(ids): labels[k] = ids[k]
    return [(ids, labels)]

def _rewrites(row): # does the template write what was said before differently when an answer follows
    if row.peer not in ('axolotl', 'trl') or row.type not in ('chat_template', 'sharegpt', 'messages'): return False
    _, source, messages, learned, text, *_ = _read_chat(row)
    template = resolve_chat_template(source)
    def is_rewritten(i):
        prompt = row.tokenizer.apply_chat_template(
            messages[:i], tokenize=False, add_generation_prompt=True, chat_template=template)
        return not text.startswith(prompt)
    return any(is_rewritten(i) for i, m in enumerate(messages) if i and learned[i] and m['role'] == 'assistant')

def _is_vicuna(row): return row.peer == 'fastchat' or (row.peer, row.type) == ('wizardlm', 'freeform_multiturn')

def _vicuna_messages(row): # the questions and answers that FastChat writes
    messages = [(m['from'], m['value']) for m in row.line['record']['conversations']]
    return messages[1:] if messages[0][0] == 'gpt' else messages

def _is_answered(row): return _is_vicuna(row) and any(who == 'gpt' and text for who, text in _vicuna_messages(row))

def _vicuna_labels(row, want): # the answers are learned, up to the last one
    ids, text, labels = want[0][0], _VICUNA_SYSTEM + ' ', []
    def count(text): return len(row.tokenizer(text)['input_ids'])
    for who, content in _vicuna_messages(row):
        if who == 'human': text += f'USER: {content} ASSISTANT:'
        if who == 'human' or not content: continue
        labels += [IGNORE_INDEX] * (count(text) - len(labels))
        text += f' {content}</s>'
        labels += ids[len(labels):count(text)]
    labels = labels[:len(ids)]
    return [(ids[:len(labels)], labels)] if any(label != IGNORE_INDEX for label in labels) else []

_VICUNA_SYSTEM = ('A chat between a curious user and an artificial intelligence assistant. '
    "The assistant gives helpful, detailed, and polite answers to the user's questions.")

def _has_empty_answer(row): return '' in (row.line['record'].get('output'), row.line['record'].get('response'))

def _has_two_bos(row): return _last_ids(row)[:2] == [row.tokenizer.bos_token_id] * 2

def _has_unnamed_flags(row): # does a message say if it is trained, and no key names the property
    if row.peer != 'axolotl' or row.type not in ('chat_template', 'sharegpt'): return False
    dataset = config_like(row.peer, row.type, row.line).datasets[0]
    messages = chat_messages(row.line['record'], dataset)
    return dataset.message_field_training is None and any(m.train is not None for m in messages)

def _obey_no_flags(row): # settings that name a property which no message has
    dataset = config_like(row.peer, row.type, row.line).datasets[0]
    return {'datasets': [dataset.model_dump(exclude_unset=True) | {'message_field_training': 'no_such_property'}]}

def _is_split(row): return row.type == 'completion' and len(row.want) > 1

def _split_between_words(row, want): # the same text, each piece up to the last word that fits whole
    ids, limit, pieces = [i for ids, _ in want for i in ids], max(len(ids) for ids, _ in want), []
    def begins_word(i): return row.tokenizer.convert_ids_to_tokens(i)[0] in 'Ġ▁Ċ'
    while ids:
        n = limit
        if len(ids) > limit: n = next((k for k in range(limit, 0, -1) if begins_word(ids[k])), limit)
        pieces, ids = [*pieces, (ids[:n], ids[:n])], ids[n:]
    return pieces

CASES = [
    Case('all', 'control tokens that the data spell, as `</s>` in an answer, become control tokens',
        'they are plain text, and are counted; `allow_special_tokens: true` gives the same as the others',
        'text from outside could end an answer or forge a turn',
        lambda row: row.spells_control() and row.type != 'input_output',
        changes=lambda row: {'allow_special_tokens': True}),
    Case('axolotl, stanford_alpaca, codealpaca, wizardlm, fastchat',
        'a row in which every token is masked stays in the data',
        'the row is left out and counted, with the reason', 'it costs time and teaches nothing',
        lambda row: _is_masked(row) and not _is_answered(row) and not _misplaced(row), lambda row, want: []),
    Case('axolotl, trl',
        'a chat template that writes what was said before differently when more follows is used as it is',
        'the row is left out and counted', 'the model would be asked with another text than it learned from',
        _rewrites, lambda row, want: []),
    Case('axolotl',
        'an answer is found by comparing the tokens with those of `[[dummy_message]]`: '
        'what both have in common, as a `[` at the beginning, is masked',
        'the whole answer is learned, and nothing else', 'the model would learn lists without their brackets',
        lambda row: bool(_misplaced(row)), _learn_whole_contents),
    Case('axolotl',
        'with `roles_to_train: []` and no `train_on_eos`, a last question is replaced by the beginning of an answer',
        'the row is left out and counted', 'a text that nobody wrote would be learned',
        _is_replaced, lambda row, want: []),
    Case('axolotl', '`train: false` in a message is ignored unless a key names the property',
        'it is obeyed; `message_field_training` names another property', 'the data say what must not be learned',
        _has_unnamed_flags, changes=_obey_no_flags),
    Case('axolotl', 'a long text is cut in the middle of words', 'it is cut between words',
        'the model would learn to begin and to end inside of a word',
        _is_split, _split_between_words),
    Case('fastchat, wizardlm',
        'a conversation is masked entirely where its tokens are not as many as expected: '
        'a question at the end, `</s>` in a text, a tokenizer with `legacy: false`',
        'its answers are learned; a question without an answer is left away', 'the data shrink without a word',
        lambda row: _is_masked(row) and _is_answered(row), _vicuna_labels),
    Case('axolotl', 'with an empty answer no end token is written, even where the prompt is learned too',
        'the row is left out and counted; `empty_answers: keep` keeps it, with its end token',
        'the model would learn not to stop',
        lambda row: row.peer == 'axolotl' and _has_empty_answer(row) and not _is_masked(row), lambda row, want: []),
    Case('axolotl, trl', 'a text that begins with the beginning token gets a second one', 'exactly one',
        'the model never sees two of them when it is used',
        _has_two_bos, _without_first),
    Case('stanford_alpaca, codealpaca, wizardlm, fastchat, llamafactory',
        'an answer that ends with the end token gets a second one (`metharme` in Axolotl: always three)',
        'exactly one', 'the second would be learned as the beginning of something',
        lambda row: _count_ends(row)[0] > 1 and row.type != 'input_output', _with_one_end),
]


def read_rows(path=DATA/'parity.jsonl.gz'):
    "The rows that come with the tests, as `{file: [(peer, type, line, want), …]}`."
    files = {} # {file: {id of a row: its lines}}
    with gzip.open(path, 'rt', encoding='utf-8') as lines:
        for line in map(json.loads, lines):
            files.setdefault(line['file'], {}).setdefault(line['id'], []).append(line)
    def row(file, lines):
        peer, type = file.split('__')[:2]
        return peer, type, lines[0], [(line['input_ids'], _labels(line)) for line in lines]
    return {file: [row(file, lines) for lines in rows.values()] for file, rows in files.items()}


def _labels(line): # `spans`: how many tokens are masked, learned, masked, …
    ids = iter(line['input_ids'])
    return [token if i % 2 else IGNORE_INDEX for i, n in enumerate(line['spans']) for token in islice(ids, n)]


@lru_cache(None)
def load_test_tokenizer(name, changes='{}'):
    "One of the three tokenizers in `tests/fixtures`; `changes`: attributes to set, as JSON."
    from transformers import AutoTokenizer
    with tempfile.TemporaryDirectory() as folder:
        for file in (DATA/name).glob('*.gz'):
            (Path(folder)/file.stem).write_bytes(gzip.decompress(file.read_bytes()))
        tokenizer = AutoTokenizer.from_pretrained(folder)
    for key, value in json.loads(changes).items(): setattr(tokenizer, key, value)
    return tokenizer


def tokenizer_of(line):
    "The tokenizer that the other system was given."
    config = line['config']
    changes = dict(config.get('tokenizer_overrides') or {})
    changes |= {k: config[k] for k in ('pad_token', 'model_max_length') if k in config}
    return load_test_tokenizer(config['tokenizer'], json.dumps(changes, sort_keys=True))


def verdict(row):
    "`equal`, the cases that explain a difference, or `wrong`."
    def lists(rows): return [(list(ids), list(labels)) for ids, labels in rows]
    got = lists(encode_like(row.peer, row.type, row.line, row.tokenizer))
    if got == row.want: return 'equal'
    cases, want, changes = [c for c in CASES if c.applies(row)], row.want, {}
    for case in cases:
        want = case.mend(row, want)
        changes |= case.changes(row)
    if changes: got = lists(encode_like(row.peer, row.type, row.line, row.tokenizer, **changes))
    return tuple(c.case for c in cases) if cases and got == want else 'wrong'
