"What the package needs comes from settings.ini; the rest is in pyproject.toml."
from configparser import ConfigParser
from setuptools import setup

settings = ConfigParser(interpolation=None)
settings.optionxform = str
settings.read('settings.ini', encoding='utf-8')

setup(
    python_requires='>=' + settings['package']['min_python'],
    install_requires=settings['package']['requirements'].split(),
    extras_require={name: packages.split() for name, packages in settings['extras'].items()},
)
