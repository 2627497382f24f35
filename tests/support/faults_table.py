"""The outcome of every fault at every operation, in words of one syllable; at starts also how many runs were paid.

A fault strikes at each request that matches until the end, or, with ", once", the first one only; each request may be sent
twice where that is harmless. `create`, `input` and `begin` are the three requests of a start (Generio), `chain` is the one
request of PromptChainer's. A wait that ends in `time` went on in spite of the fault until its deadline.

How the rows that look odd come about:

* begin, 400 and 422: any refusal of a change of state is settled by a look, which finds the run in `created`.
* delete, "reset after, once": the run is gone after the first request, so the second one finds nothing.
* create, "duplicates" and what follows: the answer names a run that the service does not have, so its inputs are refused.
* chain, "wrong types": the run is read as failed, for none of its outputs came.
"""

OUTCOME_NAMES = {
    "FlowAuthError": "auth",
    "FlowNotFound": "none",
    "FlowInvalid": "bad",
    "FlowConflict": "state",
    "FlowRateLimited": "rate",
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
400                | bad 0   | bad 0   | state 0 | bad   | state | bad   | bad   | bad   | bad   | bad   | bad 0
401                | auth 0  | auth 0  | auth 0  | auth  | auth  | auth  | auth  | auth  | auth  | auth  | auth 0
402                | serv 0  | serv 0  | serv 0  | serv  | serv  | serv  | serv  | serv  | serv  | serv  | serv 0
403                | auth 0  | auth 0  | auth 0  | auth  | auth  | auth  | auth  | auth  | auth  | auth  | auth 0
404                | none 0  | none 0  | none 0  | none  | none  | none  | none  | none  | none  | none  | none 0
405                | serv 0  | serv 0  | serv 0  | serv  | serv  | serv  | serv  | serv  | serv  | serv  | serv 0
408                | serv 0  | serv 0  | serv 0  | time  | serv  | serv  | serv  | serv  | serv  | serv  | serv 0
409                | state 0 | state 0 | state 0 | state | state | state | state | state | state | state | state 0
413                | bad 0   | bad 0   | bad 0   | bad   | bad   | bad   | bad   | bad   | bad   | bad   | bad 0
415                | bad 0   | bad 0   | bad 0   | bad   | bad   | bad   | bad   | bad   | bad   | bad   | bad 0
422                | bad 0   | bad 0   | state 0 | bad   | state | bad   | bad   | bad   | bad   | bad   | bad 0
425                | state 0 | state 0 | state 0 | state | state | state | state | state | state | state | state 0
429                | rate 0  | rate 0  | rate 0  | time  | rate  | rate  | rate  | rate  | rate  | rate  | rate 0
500                | serv 0  | serv 0  | serv 0  | time  | serv  | serv  | serv  | serv  | serv  | serv  | serv 0
502                | serv 0  | serv 0  | serv 0  | time  | serv  | serv  | serv  | serv  | serv  | serv  | serv 0
503                | serv 0  | serv 0  | serv 0  | time  | serv  | serv  | serv  | serv  | serv  | serv  | serv 0
504                | serv 0  | serv 0  | serv 0  | time  | serv  | serv  | serv  | serv  | serv  | serv  | serv 0
429 after seconds  | rate 0  | rate 0  | rate 0  | time  | rate  | rate  | rate  | rate  | rate  | rate  | rate 0
503 after a date   | serv 0  | serv 0  | serv 0  | time  | serv  | serv  | serv  | serv  | serv  | serv  | serv 0
503 after nonsense | serv 0  | serv 0  | serv 0  | time  | serv  | serv  | serv  | serv  | serv  | serv  | serv 0
reset before       | away 0  | away 0  | away 0  | time  | away  | away  | away  | away  | away  | away  | away 0
reset after        | away 0  | away 0  | ok 1    | time  | away  | away  | away  | away  | away  | away  | away 1
truncated          | away 0  | away 0  | ok 1    | time  | away  | away  | away  | away  | away  | away  | away 1
slow               | away 0  | away 0  | ok 1    | time  | away  | away  | away  | away  | away  | away  | away 1
HTML               | mal 0   | mal 0   | ok 1    | time  | ok    | ok    | mal   | mal   | mal   | mal   | mal 1
empty              | mal 0   | ok 1    | ok 1    | time  | ok    | ok    | mal   | mal   | mal   | mal   | mal 1
wrong types        | mal 0   | ok 1    | ok 1    | time  | ok    | ok    | ok    | mal   | ok    | mal   | ok 1
missing            | mal 0   | ok 1    | ok 1    | time  | ok    | ok    | mal   | mal   | mal   | mal   | mal 1
nulls              | mal 0   | ok 1    | ok 1    | time  | ok    | ok    | mal   | mal   | mal   | mal   | mal 1
duplicates         | none 0  | ok 1    | ok 1    | ok    | ok    | ok    | ok    | mal   | ok    | ok    | ok 1
numbers            | none 0  | ok 1    | ok 1    | ok    | ok    | ok    | ok    | mal   | ok    | ok    | ok 1
unknown states     | none 0  | ok 1    | ok 1    | time  | ok    | ok    | ok    | mal   | ok    | ok    | ok 1
deep               | mal 0   | mal 0   | ok 1    | time  | ok    | ok    | mal   | mal   | mal   | mal   | mal 1
401, once          | auth 0  | auth 0  | auth 0  | ok    | auth  | auth  | auth  | auth  | auth  | auth  | auth 0
404, once          | none 0  | none 0  | none 0  | ok    | none  | none  | none  | none  | none  | none  | none 0
408, once          | serv 0  | serv 0  | ok 1    | ok    | serv  | serv  | serv  | serv  | serv  | serv  | serv 0
429, once          | ok 1    | ok 1    | ok 1    | ok    | ok    | ok    | ok    | ok    | ok    | ok    | rate 0
500, once          | serv 0  | serv 0  | ok 1    | ok    | serv  | serv  | serv  | serv  | serv  | serv  | serv 0
503, once          | serv 0  | serv 0  | ok 1    | ok    | ok    | ok    | ok    | ok    | ok    | ok    | serv 0
reset before, once | away 0  | away 0  | ok 1    | ok    | ok    | ok    | ok    | ok    | ok    | ok    | away 0
reset after, once  | away 0  | away 0  | ok 1    | ok    | ok    | none  | ok    | ok    | ok    | ok    | away 1
truncated, once    | away 0  | away 0  | ok 1    | ok    | ok    | none  | ok    | ok    | ok    | ok    | away 1
slow, once         | away 0  | away 0  | ok 1    | ok    | ok    | none  | ok    | ok    | ok    | ok    | away 1
HTML, once         | mal 0   | mal 0   | ok 1    | ok    | ok    | ok    | mal   | mal   | mal   | mal   | mal 1
"""
