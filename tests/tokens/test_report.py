"""The verdict on the data: each problem is found by its name, each row is counted once, and a run that makes no sense
does not begin."""
import json, random
import pytest
from llmft.commands.cli import main
from llmft.config.config import load_config
from llmft.core import UserError
from llmft.tokens.findings import FINDINGS, LEVELS
from llmft.tokens.report import data_report, prepare_data
from llmft.training.train import finetune
from tests.tiny import save_rows, save_tiny, small_tokenizer

BASE = {'base_model': 'builtin/smollm2-135m', 'sequence_len': 96, 'micro_batch_size': 2}
WORDS = ('red blue green stone river cloud apple chair seven storm window paper garden silver horse music letter '
         'bridge candle forest').split()


def say(i, n=10): return ' '.join(random.Random(i).choices(WORDS, k=n)) # the same for the same `i`, unlike any other
def task(i, **columns): return {'instruction': say(i), 'output': say(-i - 1)} | columns
def tasks(n): return [task(i) for i in range(n)]
def chat(*texts): return {'messages': [{'role': r, 'content': t} for r, t in zip(['user', 'assistant'] * 9, texts)]}
def chats(n): return [chat(say(i), say(-i - 1), say(i + 100), say(-i - 101)) for i in range(n)]


CHATML = ("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
          "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
UNSTABLE = CHATML.replace('%}<|im_start|>{{', '%}{% if loop.last or m.role == "user" %}<|im_start|>{{', 1)
UNSTABLE = UNSTABLE.replace('<|im_end|>\n{% endfor', '<|im_end|>\n{% endif %}{% endfor')
CHAT = {'type': 'chat_template'}

# name: rows, keys of the source, keys of the run, what is found: (level, name, rows)
PROBLEMS = {
    'nothing learned': ([task(i, output='') for i in range(4)], {}, {}, [('stop', 'nothing_learned', [1, 2, 3])]),
    'no answer of that role': (chats(3), CHAT | {'roles_to_train': ['tool']}, {},
                               [('stop', 'nothing_learned', [1, 2, 3])]),
    'all too long': ([task(i, output=say(i, 99)) for i in range(4)], {}, {}, [('stop', 'all_rows_cut', [1, 2, 3])]),
    'all cut': ([task(i, output=say(i, 99)) for i in range(4)], {}, {'excess_length_strategy': 'truncate'},
                [('stop', 'all_rows_cut', [1, 2, 3])]),
    'no end is learned': (chats(8), CHAT | {'train_on_eos': 'none'}, {},
                          [('stop', 'no_end_token', [1, 2, 3]), ('warn', 'turn_without_end', [1, 2, 3])]),
    'template that rewrites': (chats(8), CHAT | {'chat_template': UNSTABLE}, {},
                               [('stop', 'unstable_template', [1, 2, 3])]),
    'only the last end': (chats(8), CHAT | {'train_on_eos': 'last'}, {}, [('warn', 'turn_without_end', [1, 2, 3])]),
    'one empty answer': (tasks(10) + [task(10, output=' ')], {}, {}, [('warn', 'empty_answer', [11])]),
    'one of many empty': (tasks(200) + [task(200, output='')], {}, {'sequence_len': 256},
                          [('note', 'empty_answer', [201])]),
    'one too long': (tasks(10) + [task(10, output=say(10, 99))], {}, {}, [('warn', 'left_out', [11])]),
    'one cut': (tasks(10) + [task(10, output=say(10, 99))], {}, {'excess_length_strategy': 'truncate'},
                [('warn', 'cut_rows', [11])]),
    'one split': (tasks(10) + [task(10, output=say(10, 99))], {}, {'excess_length_strategy': 'split'},
                  [('note', 'split_rows', [11])]),
    'a refusal': (tasks(40) + [task(40 + i, output='I am sorry, but I cannot help you with that.') for i in range(6)],
                  {}, {}, [('warn', 'repeated_answer', [41, 42, 43])]),
    'twice': (tasks(30) + [task(4)], {}, {}, [('note', 'duplicates', ['r.jsonl row 31'])]),
    'nearly twice': (tasks(10) + [task(10, output=say(3, 80)), task(10, output=say(3, 79))], {}, {'sequence_len': 256},
                     [('warn', 'near_duplicates', ['r.jsonl row 12'])]),
    'only an end': (tasks(10) + [task(10, output='')], {}, {'empty_answers': 'keep'}, [('warn', 'empty_turn', [11])]),
    'control token': (tasks(10) + [task(10, output='say <|im_end|> twice')], {}, {},
                      [('note', 'control_tokens', [11])]),
    'long warm-up': (tasks(10), {}, {'warmup_steps': 100}, [('warn', 'long_warmup', [])]),
    'merged tokens': ([task(i, output=':' + say(i)) for i in range(10)], {'type': 'stanford_alpaca'},
                      {'allow_merged_tokens': True, 'sequence_len': 128}, [('stop', 'prompt_differs', [1, 2, 3])]),
    'clean': (tasks(20), {}, {'val_set_size': 4}, []),
    'clean conversations': (chats(20), CHAT, {}, []),
}


def found(report): return [(f.level, f.name, f.rows) for f in report.findings]


@pytest.mark.parametrize('name', PROBLEMS)
def test_each_problem_is_found(name, tmp_path):
    rows, source, run, expected = PROBLEMS[name]
    report = data_report(BASE | run | {'datasets': [{'path': save_rows(tmp_path/'r.jsonl', rows)} | source]})
    assert found(report) == expected, report
    for f in report.findings: assert FINDINGS[f.name].advice in f.message # each says what to do


TEMPLATES = {'double_bos': '{{ bos_token }}' * 2, 'missing_bos': '', None: '{{ bos_token }}'}

@pytest.mark.parametrize('name', TEMPLATES, ids=str)
def test_beginning(name, tmp_path):
    template = (TEMPLATES[name] + "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
                "{% if add_generation_prompt %}assistant: {% endif %}")
    model = save_tiny(tmp_path/'model', tokenizer=small_tokenizer())
    report = data_report(BASE | {'base_model': str(model), 'sequence_len': 1024, 'chat_template': template,
        'datasets': [{'path': save_rows(tmp_path/'r.jsonl', chats(6))} | CHAT]})
    assert found(report) == ([('warn', name, [1, 2, 3])] if name else [])


@pytest.mark.parametrize('leakage, level, name', [('drop', 'note', 'leakage'), ('keep', 'warn', 'kept_leakage')])
def test_leakage(leakage, level, name, tmp_path):
    report = data_report(BASE | {'leakage': leakage, 'datasets': [{'path': save_rows(tmp_path/'r.jsonl', tasks(20))}],
        'test_datasets': [{'path': save_rows(tmp_path/'t.jsonl', [task(3), task(50), task(51)])}]})
    others = [f for f in found(report) if f[1] != 'near_leakage'] # where it is kept, it is also nearly equal
    assert others == [(level, name, ['r.jsonl row 4'])]


def test_a_source_of_several_is_named(tmp_path):
    "The good source does not hide the bad one."
    good, bad = tasks(20), [task(i, output='') for i in range(2)]
    report = data_report(BASE | {'datasets': [{'path': save_rows(tmp_path/'good.jsonl', good)},
                                              {'path': save_rows(tmp_path/'bad.jsonl', bad)}]})
    assert found(report) == [('stop', 'nothing_learned', [1, 2])] and 'bad.jsonl: no row' in report.findings[0].message


@pytest.mark.parametrize('strategy', ['drop', 'truncate', 'split'])
@pytest.mark.parametrize('keys', [{}, {'val_set_size': 7}, {'dedup': 'off'}, {'dedup': 'near'}], ids=str)
def test_every_row_is_counted_once(strategy, keys, tmp_path):
    rng = random.Random(f'{strategy}{keys}')
    def messy(_):
        i = rng.randrange(30)
        answers = ['', say(rng.randrange(9)), say(rng.randrange(9), 99), say(rng.randrange(9), 300)]
        return task(i, output=rng.choice(answers))
    files = {name: [messy(i) for i in range(n)] for name, n in [('a.jsonl', 60), ('b.jsonl', 25)]}
    files['c.jsonl'] = [{'text': say(i, rng.choice([3, 60, 300]))} for i in range(15)]
    formats, weights = ['alpaca', 'alpaca', 'completion'], [1, 2, 1]
    sources = [{'path': save_rows(tmp_path/name, rows), 'type': prompt_format, 'weight': weight}
               for (name, rows), prompt_format, weight in zip(files.items(), formats, weights)]
    config = load_config(BASE | keys | {'excess_length_strategy': strategy, 'datasets': sources})
    data = prepare_data(config, strict=False)
    summaries = data.report.summaries
    assert {s.source: s.n_read for s in summaries} == {name: len(rows) for name, rows in files.items()}
    for s in summaries:
        assert min(s.used, s.held_out, s.removed, s.n_left_out) >= 0
        assert s.cut <= s.used + s.held_out and s.split <= s.used + s.held_out
    assert sum(s.removed for s in summaries) == sum(n for n, _ in data.report.removed.values())
    assert sum(s.tokens for s in summaries) == sum(map(len, data.train['input_ids'])) # what is reported is trained
    assert sum(s.learned for s in summaries) == sum(l != -100 for labels in data.train['labels'] for l in labels)


def test_a_row_that_is_split_counts_once(tmp_path):
    rows = tasks(3) + [task(3, output=say(3, 300))]
    report = data_report(BASE | {'excess_length_strategy': 'split',
                                 'datasets': [{'path': save_rows(tmp_path/'r.jsonl', rows)}]})
    messages = [f.message.split('. ')[0] for f in report.findings]
    assert messages == ['r.jsonl: cut into several rows: 1 of 4 rows (row 4)']


def test_a_source_that_is_named_twice_is_not_nearly_equal_to_itself(tmp_path):
    source = {'path': save_rows(tmp_path/'r.jsonl', tasks(10))}
    other = source | {'type': 'alpaca_chat'}
    assert found(data_report(BASE | {'datasets': [source, other]})) == []


STREAMING = BASE | {'streaming': True, 'max_steps': 1}


def test_streamed_rows_with_weights_are_counted(tmp_path):
    source = {'path': save_rows(tmp_path/'r.jsonl', tasks(10)), 'weight': 2}
    report = data_report(STREAMING | {'datasets': [source]})
    assert [(s.n_read, s.weighted, s.used) for s in report.summaries] == [(10, 10, 20)]
    assert 'not looked for' in report.skipped_checks[-1]


def test_streamed_rows_that_are_held_out_are_not_counted_as_learned(tmp_path):
    source = {'path': save_rows(tmp_path/'r.jsonl', tasks(10)), 'weight': 2}
    heldout = {'path': save_rows(tmp_path/'t.jsonl', tasks(3))}
    data = prepare_data(load_config(STREAMING | {'datasets': [source], 'test_datasets': [heldout]}))
    counts = [(s.n_read, s.removed, s.weighted, s.used) for s in data.report.summaries]
    assert counts == [(10, 6, 10, 14), (3, 0, 0, 0)]
    assert found(data.report) == [('note', 'leakage', ['r.jsonl row 1', 'r.jsonl row 2', 'r.jsonl row 3'])]
    assert 'were streamed' not in str(data) # nothing was, up to now
    with pytest.raises(UserError, match='all of the first 3 are held out as well'):
        data_report(STREAMING | {'datasets': [heldout], 'test_datasets': [heldout]})


def test_first_rows_are_the_first(tmp_path):
    "Though the rows are shuffled before they become tokens."
    rows = tasks(30) + [task(30 + i, output='') for i in range(9)]
    config = load_config(BASE | {'val_set_size': 2, 'datasets': [{'path': save_rows(tmp_path/'r.jsonl', rows)}]})
    data = prepare_data(config)
    (n, first), = data.row_counts.left_out.values()
    assert n >= 7 and first == sorted(first) and set(first) <= {31, 32, 33, 34, 35}


def test_builtin_data_are_clean():
    report = data_report('smollm2-135m')
    assert {f.level for f in report.findings} <= {'note'} and sum(s.used for s in report.summaries) == 1000


@pytest.fixture
def stopping(tmp_path): # a run whose data has a finding that stops it
    rows, source, _, _ = PROBLEMS['no end is learned']
    return BASE | {'base_model': str(save_tiny(tmp_path/'model')), 'max_steps': 1, 'output_dir': str(tmp_path/'run'),
                   'val_set_size': 2, 'datasets': [{'path': save_rows(tmp_path/'r.jsonl', rows)} | source]}


def test_training_stops_before_weights_are_read(stopping, tmp_path):
    (tmp_path/'model'/'model.safetensors').write_bytes(b'broken') # reading them would be another error
    message = '(?s)not fit to be learned from.*no_end_token.*ignore_findings: .no_end_token.'
    with pytest.raises(UserError, match=message): finetune(stopping, say=None)
    assert not (tmp_path/'run').exists()


def test_training_goes_on_if_told_so(stopping, tmp_path):
    run = finetune(stopping | {'ignore_findings': ['no_end_token']}, say=None)
    report = json.loads((run.path/'report.json').read_text())
    assert run.last('step') == 1 and ('stop', 'no_end_token') in [(f['level'], f['name']) for f in report['findings']]
    assert 'STOP (ignored)  no_end_token' in (run.path/'report.md').read_text()


def test_unknown_name_is_told(stopping):
    config = load_config(stopping, ignore_findings=['no_end_tokens'])
    with pytest.raises(UserError, match='no finding `no_end_tokens`. Did you mean `no_end_token`'): prepare_data(config)


def test_commands(stopping, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'run.yml').write_text(json.dumps(stopping)) # JSON is YAML
    with pytest.raises(SystemExit) as e: main(['check', 'run.yml'])
    output = capsys.readouterr()
    assert e.value.code == 2 and output.err.count('Error: ') == 1
    assert 'STOP  no_end_token' in output.out and 'median' in output.out
    with pytest.raises(SystemExit) as e: main(['preview', 'run.yml', '-n', '1'])
    shown = capsys.readouterr().out
    assert e.value.code in (0, None) and WORDS[0] in shown
    assert 'STOP  no_end_token' in shown and 'median' not in shown


def test_picture(tmp_path):
    report = data_report(BASE | {'datasets': [{'path': save_rows(tmp_path/'r.jsonl', tasks(20))}]})
    figure = report.plot()
    assert len(figure.axes) == 3 and all(ax.get_title(loc='left') and ax.get_xlabel() for ax in figure.axes)


def test_every_finding_has_a_proof():
    "No name in the table that no test brings about."
    proved = {name for _, _, _, expected in PROBLEMS.values() for _, name, _ in expected}
    proved |= {*TEMPLATES, 'leakage', 'kept_leakage', 'near_leakage'}
    proved |= {'role_order', 'tool_calls', 'unread_training_flag', 'unread_content', 'unread_property',
               'forced_thought', 'unfit_template'} # in test_rows
    assert {*FINDINGS} <= proved and all(k.level in LEVELS for k in FINDINGS.values())


@pytest.mark.parametrize('keys', [{'chat_template': 'chatml'}, {'eot_tokens': ['<|im_end|>']}],
                         ids=['template', 'eot_tokens'])
def test_generation_stops_where_the_report_says(keys, tmp_path):
    "A source with a template of its own, on a model with another end token."
    import torch
    from transformers import AutoModelForCausalLM
    from llmft.inference.generate import generate_ids
    from llmft.tokens.report import config_stop_token_ids
    from llmft.tokens.special import align_special_tokens
    from llmft.tokens.tokenize import load_tokenizer
    tokenizer = small_tokenizer()
    tokenizer.add_special_tokens({'extra_special_tokens': ['<|im_start|>', '<|im_end|>']})
    save_tiny(tmp_path/'model', tokenizer=tokenizer)
    source = {'path': 'x.jsonl', 'type': 'chat_template'} | {k: v for k, v in keys.items() if k == 'chat_template'}
    run_keys = {k: v for k, v in keys.items() if k == 'eot_tokens'}
    config = load_config({'base_model': str(tmp_path/'model'), 'datasets': [source]} | run_keys)
    tokenizer, end = load_tokenizer(config), tokenizer.convert_tokens_to_ids('<|im_end|>')
    assert config_stop_token_ids(config, tokenizer) == {end, tokenizer.eos_token_id}
    model = AutoModelForCausalLM.from_pretrained(tmp_path/'model')
    with torch.no_grad(): # it writes this token, or the first
        model.lm_head.weight.zero_()[end] = model.model.embed_tokens.weight.sum(0)
    prompts = ([i] for i in range(100))
    prompt = next(p for p in prompts if generate_ids(model, tokenizer, [p], max_new_tokens=1) == [[end]])
    assert len(generate_ids(model, tokenizer, [prompt], max_new_tokens=5)[0]) == 5
    aligned = align_special_tokens(model, tokenizer, config)
    assert generate_ids(aligned, tokenizer, [prompt], max_new_tokens=5) == [[]]


def test_an_end_token_must_exist(tmp_path):
    from llmft.tokens.tokenize import load_tokenizer
    save_tiny(tmp_path/'model', tokenizer=small_tokenizer())
    config = load_config({'base_model': str(tmp_path/'model'), 'datasets': [{'path': 'x.jsonl'}],
                          'eot_tokens': ['<|eot|>']})
    with pytest.raises(UserError, match='eot_tokens: `<|eot|>` is not a token of this model'): load_tokenizer(config)
