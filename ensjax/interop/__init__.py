"""Weights from elsewhere: folders of other frameworks, in and out.

Files are read and written tensor by tensor; nothing here needs the code of the models
that the weights belong to.
"""

__all__: list[str] = []
