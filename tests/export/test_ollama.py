"A Modelfile's template writes the prompts of the training."
import json, shutil, subprocess

import pytest

from llmft.core import UserError
from llmft.export.ollama import go_template, modelfile, write_modelfile
from llmft.inference.pieces import begins_with_bos, chat_template, prompt_pieces, prompt_text
from llmft.inference.generate import prompt_ids
from llmft.tokens.tokenize import load_tokenizer
from llmft.config.config import load_config
from tests.small import small_run
from tests.tiny import builtin_tokenizer

TEMPLATES = {
    'chatml': None,
    'zephyr': "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}</s>\n{% endfor %}"
              "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
    'llama3': "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
              "{{ m.content }}<|eot_id|>{% endfor %}{% if add_generation_prompt %}"
              "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
    'gemma': "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}"
             "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content }}<end_of_turn>\n"
             "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
    'mistral': "{{ bos_token }}{% set ns = namespace(s='') %}{% for m in messages %}{% if m.role == 'system' %}"
               "{% set ns.s = m.content + '\n\n' %}{% elif m.role == 'user' %}[INST] {{ ns.s + m.content }} [/INST]"
               "{% set ns.s = '' %}{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
    'default system': "{% if messages[0].role != 'system' %}<sys>Be kind.</sys>\n{% endif %}{% for m in messages %}"
                      "<{{ m.role[:3] }}>{{ m.content }}</{{ m.role[:3] }}>\n{% endfor %}"
                      "{% if add_generation_prompt %}<ass>{% endif %}",
    'quotes': "{% for m in messages %}{{ m.role }} \"says\" {{ '{{' }} \\ {{ m.content }}\n{% endfor %}"
              "{% if add_generation_prompt %}assistant \"says\" {{ '{{' }} \\ {% endif %}",
}
FORMATS = ['alpaca', 'completion', 'chat_template']


def config_for(**dataset):
    data = {'path': 'builtin/python-evol-1k'} | dataset
    return load_config({'base_model': 'builtin/smollm2-135m', 'datasets': [data]})


def template_config(name):
    jinja = TEMPLATES[name]
    return config_for(type='chat_template', **{'chat_template_jinja': jinja} if jinja else {})


def talk(n, system=False):
    texts = ['What is 1 + 1?\nSay it.', ' Two — "2".', '{{ .Content }} & <b>?', "it's `3`", '你好']
    talk = [{'role': ('user', 'assistant')[i % 2], 'content': text} for i, text in enumerate(texts[:n])]
    return [{'role': 'system', 'content': 'In "one" line.\n'}] * system + talk


def text_ids(text, tokenizer, config): # as another program makes them of a prompt that is one text
    bos = [tokenizer.bos_token_id] if begins_with_bos(tokenizer, config) else []
    return bos + tokenizer(text, add_special_tokens=False)['input_ids']


@pytest.mark.parametrize('name', TEMPLATES)
def test_pieces(name):
    tokenizer, config = builtin_tokenizer(), template_config(name)
    pieces = prompt_pieces(config, tokenizer)
    assert bool(pieces.system) == (name != 'gemma')
    for n in (1, 3, 5):
        assert pieces.write(talk(n)) == prompt_text(talk(n), tokenizer, config)
        if pieces.system: assert pieces.write(talk(n, True)) == prompt_text(talk(n, True), tokenizer, config)


COUNTS = "{% for m in messages %}{{ loop.index }} {{ m.role }}: {{ m.content }}\n{% endfor %}answer: "
CHANGES = "{% for m in messages %}{{ m.role }}: {{ m.content | upper | lower }}\n{% endfor %}answer: "


@pytest.mark.parametrize('jinja', [COUNTS, CHANGES])
def test_what_fixed_texts_cannot_write(jinja):
    with pytest.raises(UserError, match='cannot be written with fixed texts'):
        prompt_pieces(config_for(type='chat_template', chat_template_jinja=jinja), builtin_tokenizer())


@pytest.mark.parametrize('kind', ['alpaca', 'completion'])
def test_template_for_other_formats(kind):
    tokenizer, config = builtin_tokenizer(), config_for(type=kind)
    messages = [{'role': 'user', 'content': 'Say "\\n" & 你好.\n'}]
    text = tokenizer.apply_chat_template(messages, chat_template=chat_template(config, tokenizer), tokenize=False)
    assert text == prompt_text(messages[0]['content'], tokenizer, config)
    assert text_ids(text, tokenizer, config) == prompt_ids(messages[0]['content'], tokenizer, config.datasets[0])


GO = '''package main
import ("encoding/json"; "os"; "text/template"; "bytes")
type Message struct { Role string; Content string }
type Case struct { Template string; Messages []Message }
func main() {
    var cases []Case
    json.NewDecoder(os.Stdin).Decode(&cases)
    texts := []string{}
    for _, c := range cases {
        var out bytes.Buffer
        parsed, err := template.New("t").Option("missingkey=zero").Parse(c.Template)
        if err == nil { err = parsed.Execute(&out, map[string]any{"Messages": c.Messages}) }
        if err != nil { texts = append(texts, "ERROR " + err.Error()) } else { texts = append(texts, out.String()) }
    }
    json.NewEncoder(os.Stdout).Encode(texts)
}
'''


@pytest.mark.skipif(not shutil.which('go'), reason='needs Go, whose templates Ollama uses')
def test_go_writes_the_same(tmp_path):
    tokenizer, cases, expected = builtin_tokenizer(), [], []
    for config in [*map(template_config, TEMPLATES), config_for(type='alpaca')]:
        pieces = prompt_pieces(config, tokenizer)
        talks = [talk(n, s) for n in (1, 3, 5) for s in (False, True) if pieces.system or not s]
        for messages in talks if pieces.answer is not None else [talk(1)]:
            cases.append({'Template': go_template(pieces), 'Messages': messages})
            question = messages if pieces.answer is not None else messages[0]['content']
            expected.append((prompt_text(question, tokenizer, config), question, config))
    (tmp_path/'main.go').write_text(GO)
    run = subprocess.run(['go', 'run', 'main.go'], input=json.dumps(cases), capture_output=True, text=True,
                         cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    for found, (text, question, config) in zip(json.loads(run.stdout), expected, strict=True):
        assert found == text
        assert text_ids(found, tokenizer, config) == prompt_ids(question, tokenizer, config.datasets[0])


def test_modelfile(tmp_path):
    text = modelfile(template_config('chatml'), load_tokenizer(template_config('chatml')))
    assert text.startswith('FROM ./model.gguf\nTEMPLATE """') and 'PARAMETER stop "<|im_end|>"' in text
    run = small_run(tmp_path)
    write_modelfile(run, tmp_path/'Modelfile', 'a.gguf')
    assert 'Below is an instruction' in (tmp_path/'Modelfile').read_text()
    with pytest.raises(UserError, match='exists already'): write_modelfile(run, tmp_path/'Modelfile')
    with pytest.raises(UserError, match='this is a folder'): write_modelfile(run, tmp_path)
