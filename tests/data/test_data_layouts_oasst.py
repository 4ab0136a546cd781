"""Every thread of a tree, compared with a recursive count of paths."""

import random
from typing import Any

from layout_outcomes import outcomes
from layout_samples import reply

from ift.data.conversation import Conversation
from ift.data.layouts import RowError


def random_tree(rng: random.Random, names: list[int], role: str = "prompter", depth: int = 0) -> dict[str, Any]:
    names.append(len(names))
    name = f"m{names[-1]}"
    other = "assistant" if role == "prompter" else "prompter"
    num_replies = rng.choice([0, 1, 1, 2, 3]) if depth < 6 else 0
    replies = [random_tree(rng, names, other, depth + 1) for _ in range(num_replies)]
    more: dict[str, Any] = {"rank": rng.choice([None, *range(4)])} if role == "assistant" else {}
    if depth and rng.random() < 0.15:
        more[rng.choice(["deleted", "review_result"])] = None
        more = {key: (key == "deleted") if key != "rank" else value for key, value in more.items()}
    return reply(name, role, *replies, **more)


def left_out(message: dict[str, Any]) -> bool:
    return message.get("deleted") is True or message.get("review_result") is False


def paths(message: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """All paths from here to a message without usable replies, in the order of ranks (an own, recursive way)."""
    replies = [item for item in message["replies"] if not left_out(item)]
    replies.sort(key=lambda item: 99 if item.get("rank") is None else item["rank"])
    return [[message, *path] for item in replies for path in paths(item)] or [[message]]


def num_left_out(message: dict[str, Any]) -> int:
    return sum(1 if left_out(item) else num_left_out(item) for item in message["replies"])


def test_threads_of_random_trees() -> None:
    rng = random.Random(7)
    num_threads = num_refused = 0
    for _ in range(300):
        tree = random_tree(rng, [])
        expected: list[list[str]] = []
        num_empty = 0
        for path in paths(tree):
            while path and path[-1]["role"] == "prompter":
                path.pop()
            texts = [message["text"] for message in path]
            num_empty += not texts
            if texts and texts not in expected:
                expected.append(texts)
        result = outcomes("oasst", {"message_tree_id": "t", "prompt": tree})
        threads = [one for one in result if isinstance(one, Conversation)]
        assert [[message.text for message in one.messages] for one in threads] == expected
        refused = [str(one) for one in result if isinstance(one, RowError)]
        assert len([said for said in refused if "deleted" in said or "review" in said]) == num_left_out(tree)
        assert refused.count("a request has no response") == num_empty
        num_threads, num_refused = num_threads + len(threads), num_refused + len(refused)
    assert num_threads > 500 and num_refused > 50


def test_the_root_may_be_left_out() -> None:
    tree = reply("a", "prompter", reply("b", "assistant"), deleted=True)
    assert [str(one) for one in outcomes("oasst", tree)] == ["a message is deleted"]
