"""The outcome of every fault at every operation in short words, for starts also the number of billed runs.

A fault occurs at every matching request, or, with ", once", at the first one only. A request that is safe to
repeat is retried once. `create`, `input` and `begin` are the three requests of a start at Generio, `chain` is
PromptChainer's one request. A wait with the outcome `time` continues until its deadline despite the fault.

Outcomes that need an explanation:

* begin, 400 and 422: a rejected change of state is followed by a poll, which finds the run in `created`.
* delete, "reset after, once": the first request deletes the run, so the second one does not find it.
* create, "duplicates" and below: the response names a run that does not exist, so inputs are rejected.
* chain, "wrong types": the run counts as failed, because none of its outputs arrived.
"""

OUTCOME_NAMES = {
    "FlowAuthError": "auth",
    "FlowNotFound": "none",
    "FlowInvalid": "bad",
    "FlowConflict": "state",
    "FlowRateLimited": "rate",
    "FlowQuotaExceeded": "quota",
    "FlowServiceError": "serv",
    "FlowUnreachable": "away",
    "FlowMalformed": "mal",
    "FlowTimeout": "time",
}
OPERATIONS = (
    "create",
    "input",
    "begin",
    "wait",
    "abort",
    "delete",
    "outputs",
    "download",
    "runs",
    "definition",
    "chain",
)
OUTCOMES = """
400               | bad 0  | bad 0  | state 0| bad  | state| bad  | bad  | bad  | bad  | bad  | bad 0
401               | auth 0 | auth 0 | auth 0 | auth | auth | auth | auth | auth | auth | auth | auth 0
402               | quota 0| quota 0| quota 0| quota| quota| quota| quota| quota| quota| quota| quota 0
403               | auth 0 | auth 0 | auth 0 | auth | auth | auth | auth | auth | auth | auth | auth 0
404               | none 0 | none 0 | none 0 | none | none | none | none | none | none | none | none 0
405               | serv 0 | serv 0 | serv 0 | serv | serv | serv | serv | serv | serv | serv | serv 0
408               | serv 0 | serv 0 | serv 0 | time | serv | serv | serv | serv | serv | serv | serv 0
409               | state 0| state 0| state 0| state| state| state| state| state| state| state| state 0
413               | bad 0  | bad 0  | bad 0  | bad  | bad  | bad  | bad  | bad  | bad  | bad  | bad 0
415               | bad 0  | bad 0  | bad 0  | bad  | bad  | bad  | bad  | bad  | bad  | bad  | bad 0
422               | bad 0  | bad 0  | state 0| bad  | state| bad  | bad  | bad  | bad  | bad  | bad 0
425               | state 0| state 0| state 0| state| state| state| state| state| state| state| state 0
429               | rate 0 | rate 0 | rate 0 | time | rate | rate | rate | rate | rate | rate | rate 0
500               | serv 0 | serv 0 | serv 0 | time | serv | serv | serv | serv | serv | serv | serv 0
502               | serv 0 | serv 0 | serv 0 | time | serv | serv | serv | serv | serv | serv | serv 0
503               | serv 0 | serv 0 | serv 0 | time | serv | serv | serv | serv | serv | serv | serv 0
504               | serv 0 | serv 0 | serv 0 | time | serv | serv | serv | serv | serv | serv | serv 0
429 after seconds | rate 0 | rate 0 | rate 0 | time | rate | rate | rate | rate | rate | rate | rate 0
503 after a date  | serv 0 | serv 0 | serv 0 | time | serv | serv | serv | serv | serv | serv | serv 0
503 after nonsense| serv 0 | serv 0 | serv 0 | time | serv | serv | serv | serv | serv | serv | serv 0
reset before      | away 0 | away 0 | away 0 | time | away | away | away | away | away | away | away 0
reset after       | away 0 | away 0 | ok 1   | time | away | away | away | away | away | away | away 1
truncated         | away 0 | away 0 | ok 1   | time | away | away | away | away | away | away | away 1
slow              | away 0 | away 0 | ok 1   | time | away | away | away | away | away | away | away 1
HTML              | mal 0  | mal 0  | ok 1   | time | ok   | ok   | mal  | mal  | mal  | mal  | mal 1
empty             | mal 0  | ok 1   | ok 1   | time | ok   | ok   | mal  | mal  | mal  | mal  | mal 1
wrong types       | mal 0  | ok 1   | ok 1   | time | ok   | ok   | ok   | mal  | ok   | mal  | ok 1
missing           | mal 0  | ok 1   | ok 1   | time | ok   | ok   | mal  | mal  | mal  | mal  | mal 1
nulls             | mal 0  | ok 1   | ok 1   | time | ok   | ok   | mal  | mal  | mal  | mal  | mal 1
duplicates        | none 0 | ok 1   | ok 1   | ok   | ok   | ok   | ok   | mal  | ok   | ok   | ok 1
numbers           | none 0 | ok 1   | ok 1   | ok   | ok   | ok   | ok   | mal  | ok   | ok   | ok 1
unknown states    | none 0 | ok 1   | ok 1   | time | ok   | ok   | ok   | mal  | ok   | ok   | ok 1
deep              | mal 0  | mal 0  | ok 1   | time | ok   | ok   | mal  | mal  | mal  | mal  | mal 1
401, once         | auth 0 | auth 0 | auth 0 | ok   | auth | auth | auth | auth | auth | auth | auth 0
404, once         | none 0 | none 0 | none 0 | ok   | none | none | none | none | none | none | none 0
408, once         | serv 0 | serv 0 | ok 1   | ok   | serv | serv | serv | serv | serv | serv | serv 0
429, once         | ok 1   | ok 1   | ok 1   | ok   | ok   | ok   | ok   | ok   | ok   | ok   | rate 0
500, once         | serv 0 | serv 0 | ok 1   | ok   | serv | serv | serv | serv | serv | serv | serv 0
503, once         | ok 1   | serv 0 | ok 1   | ok   | ok   | ok   | ok   | ok   | ok   | ok   | serv 0
reset before, once| ok 1   | away 0 | ok 1   | ok   | ok   | ok   | ok   | ok   | ok   | ok   | away 0
reset after, once | ok 1   | away 0 | ok 1   | ok   | ok   | none | ok   | ok   | ok   | ok   | away 1
truncated, once   | ok 1   | away 0 | ok 1   | ok   | ok   | none | ok   | ok   | ok   | ok   | away 1
slow, once        | ok 1   | away 0 | ok 1   | ok   | ok   | none | ok   | ok   | ok   | ok   | away 1
HTML, once        | mal 0  | mal 0  | ok 1   | ok   | ok   | ok   | mal  | mal  | mal  | mal  | mal 1
"""
