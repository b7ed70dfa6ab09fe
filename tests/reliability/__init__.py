"""What a survivor sees when its peer fails: a case for each fault at each stage.

``make reliability`` runs them and writes docs/reliability.md from what they saw.

cases.py   which there are
stages.py  how a peer gets to a stage, and what the survivor does there
page.py    what was seen → docs/reliability.md
"""
