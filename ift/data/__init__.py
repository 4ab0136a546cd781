"""From rows to steps: rows ► conversations ► segments ► examples ► steps.

`conversation`, `layouts`, `rows` and `templates` start without torch.
"""
