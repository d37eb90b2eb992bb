"""The exception that a client sees as a status and one sentence."""


class Refusal(Exception):
    """Refuse a request.

    Attributes:
        status: HTTP status.
    """

    def __init__(self, status: int, message: str):
        self.status = status
        super().__init__(message)
