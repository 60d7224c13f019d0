"The lines of a run's README are run, and answer as llmft does."
import re

import pytest

from llmft.export.card import model_card
from llmft.export.usage import PROMPT_TEMPLATE, usage_markdown, write_prompt_template
from llmft.inference.load import load_run, load_run_config, load_saved_tokenizer, weights_folder
from llmft.training.train import finetune
from tests.small import change_json, small_config, small_run

QUESTION = 'Add 3 to "x",\n  please'


def usage(run):
    config = load_run_config(run)
    tokenizer = load_saved_tokenizer(weights_folder(run), config)
    write_prompt_template(run, tokenizer, config)
    return usage_markdown(config, run, tokenizer)


def ask(markdown, capsys, question=QUESTION):
    "What the lines in Python print."
    code = re.search(r'```python\n(.*?)```', markdown, re.S)[1]
    assert 'max_new_tokens=200' in code and '"your question"' in code
    capsys.readouterr()
    exec(code.replace('max_new_tokens=200', 'max_new_tokens=12').replace('"your question"', repr(question)), {})
    return capsys.readouterr().out.removesuffix('\n')


def source(tmp_path, **keys): # `datasets`, and no held-out rows, whose format would be another
    return {'datasets': [{'path': str(tmp_path/'data.jsonl'), **keys}], 'test_datasets': []}


TEMPLATE = ("{% if fast %}Be fast.\n{% endif %}{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
            "{% if add_generation_prompt %}<assistant>{% endif %}")
RUNS = {
    'alpaca': dict(type='alpaca'), 'completion': dict(type='completion'), 'prompt_completion': dict(
        type='prompt_completion'), 'the template of the tokenizer': dict(type='chat_template'),
    'a template of the YAML': dict(type='chat_template', chat_template_jinja=TEMPLATE),
    'an own format': dict(type={'format': 'Q: {instruction}\nA:', 'no_input_format': 'Q: {instruction}\nA:'}),
}


@pytest.mark.parametrize('name', RUNS)
def test_lines_for_transformers_and_peft(name, tmp_path, capsys):
    run = small_run(tmp_path, **source(tmp_path, **RUNS[name]))
    expected, = load_run(run).generate([QUESTION], max_new_tokens=12)
    assert ask(usage(run), capsys) == expected and expected


def test_variables_of_the_template(tmp_path, capsys):
    keys = source(tmp_path, type='chat_template', chat_template_jinja=TEMPLATE)
    run = small_run(tmp_path, chat_template_kwargs={'fast': True}, **keys)
    assert ask(usage(run), capsys) == load_run(run).generate([QUESTION], max_new_tokens=12)[0]
    assert 'tokenize=False, fast=True)' in usage(run)


def test_a_folder_with_blanks(tmp_path, capsys):
    (tmp_path/'my "runs"').mkdir()
    run = small_run(tmp_path/'my "runs"')
    text = usage(run)
    assert ask(text, capsys) == load_run(run).generate([QUESTION], max_new_tokens=12)[0]
    assert f"llmft merge '{run}'" in text


def test_after_a_training(tmp_path, capsys):
    "The README that a training writes, of all weights."
    run = finetune(small_config(tmp_path, adapter='full', leakage='keep', sample_prompts=0), say=None).path
    text = (run/'README.md').read_text()
    assert ask(text, capsys) == load_run(run).generate([QUESTION], max_new_tokens=12)[0]
    assert 'AutoPeft' not in text and 'llmft merge' not in text and f'vllm serve {run}/model' in text
    assert (run/PROMPT_TEMPLATE).is_file() and 'An answer ends at `</s>`' in text


def test_base_of_few_bits(tmp_path):
    run = small_run(tmp_path, adapter='lora')
    change = (run/'config_completed.yml').read_text().replace('load_in_4bit: false', 'load_in_4bit: true')
    (run/'config_completed.yml').write_text(change.replace('adapter: lora', 'adapter: qlora'))
    text = usage(run)
    assert ('BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)' in text
            and 'from transformers import AutoTokenizer, BitsAndBytesConfig' in text)


def test_what_other_programs_do_not_take(tmp_path):
    run = small_run(tmp_path)
    change_json(run/'adapter'/'adapter_config.json', use_dora=True)
    assert 'vLLM does not take an adapter with DoRA' in usage(run)


def test_paths_of_the_steps_after_training(tmp_path):
    text = usage(small_run(tmp_path, after=[{'merge': {'folder': str(tmp_path/'m')}}, {'gguf': 'f16'}]))
    assert f'vllm serve {tmp_path}/m ' in text and 'llmft merge' not in text and 'llmft gguf' not in text
    assert f'ollama create run -f {tmp_path}/run/gguf/Modelfile' in text


def test_the_card_for_who_has_only_the_repository(tmp_path):
    card = model_card(small_run(tmp_path), 'mine', 'me/mine')
    code = re.search(r'```python\n(.*?)```', card, re.S)[1]
    compile(code, 'card', 'exec')
    assert 'open(hf_hub_download("me/mine", "prompt_template.jinja")' in code and 'llmft chat me/mine' in card
    settings = re.search(r'```yaml\n(.*?)```', card, re.S)[1]
    assert 'lora_r: 2' in settings and 'learning_rate' not in settings and len(settings.splitlines()) < 25
