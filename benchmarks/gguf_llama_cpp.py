"""A GGUF file in llama.cpp beside the merged model in transformers: ids and greedy answers of 20 prompts.

    python -m benchmarks.gguf_llama_cpp write MERGED FOLDER   # with llmft: model.gguf, and what is expected
    python -m benchmarks.gguf_llama_cpp read FOLDER           # with llama-cpp-python, which may be another Python
"""
import json, sys
from pathlib import Path

QUESTIONS = ['Name three fruits.', 'What is 12345 + 67890?', 'Write a Python function `triple(n)`.',
             'Why is the sky blue?', 'Say "hello" in French.', 'What is 2**10?', 'List the days of the week.',
             'Count from 1 to 5.', 'Écris un mot: été.', '你好', 'Reverse the string "abc".',
             'What is 7 * 8?\nAnswer with a number.', '  two blanks in front', "It's a dog's life, isn't it?",
             'def f(x):\n\treturn x', 'Who wrote Hamlet?',
             'A word for big?', 'Spell 1999 and 2024.', 'x=1;y=22;z=333', 'Finish: once upon a time']


def write(merged, folder):
    import torch
    from transformers import AutoModelForCausalLM
    from llmft.export.gguf import export_gguf
    from llmft.inference.generate import generate_ids, prompt_ids
    from llmft.inference.load import load_run_config, load_saved_tokenizer
    from llmft.inference.pieces import prompt_text
    folder, config = Path(folder), load_run_config(merged)
    tokenizer = load_saved_tokenizer(merged, config)
    export_gguf(merged, folder/'model.gguf', 'f16')
    model = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float16).float().eval()
    prompts = [prompt_ids(q, tokenizer, config.datasets[0]) for q in QUESTIONS]
    answers = [generate_ids(model, tokenizer, [p], max_new_tokens=24)[0] for p in prompts]
    texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
    rows = [{'text': prompt_text(question, tokenizer, config), 'ids': ids, 'answer': text}
            for question, ids, text in zip(QUESTIONS, prompts, texts)]
    (folder/'expected.json').write_text(json.dumps(rows))


def read(folder):
    from llama_cpp import Llama
    model = Llama(str(Path(folder)/'model.gguf'), n_ctx=512, verbose=False, logits_all=False, n_threads=1)
    same_ids = same_text = 0
    rows = json.loads((Path(folder)/'expected.json').read_text())
    for row in rows:
        ids = model.tokenize(row['text'].encode(), add_bos=True, special=True)
        same_ids += ids == row['ids']
        if ids != row['ids']: print('ids', repr(row['text'][-60:]), ids, row['ids'])
        text = model.create_completion(row['ids'], max_tokens=24, temperature=0)['choices'][0]['text']
        same_text += text == row['answer']
        if text != row['answer']: print('text', repr(text), repr(row['answer']))
    print(json.dumps({'prompts': len(rows), 'same ids': same_ids, 'same text': same_text}))


if __name__ == '__main__': {'write': write, 'read': read}[sys.argv[1]](*sys.argv[2:])
