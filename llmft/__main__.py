"`python -m llmft` is the command line."
from llmft.commands.cli import main

if __name__ == '__main__': main()
