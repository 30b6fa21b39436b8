"""What each figure of the portal means and how it is measured. A figure is known by the words that stand above it.

`tests/portal/test_texts.py` fails for a figure of a template that is missing here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

Text = str | Promise


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure."""

    code: str
    title: Text
    means: Text
    measured: Text


PRICES: Final = _("Its size × the published prices of this moment; what has no price counts nothing.")
BY_GATEWAY: Final = _(
    "The gateway in front of the endpoint counts and reports every few seconds; summed by whole hours."
)

BY_MINUTE: Final = _("The gateway in front of the endpoint counts and reports every few seconds; summed by the minute.")
BY_LOOK: Final = _("The gateway asks the model servers every ten seconds; of each minute the highest is shown.")
BY_LOAD: Final = _("A worker sends the requests through the endpoint's own address and measures as a caller does.")

FIGURES: Final = (
    # -- money -------------------------------------------------------------------------------------------
    Figure("cost-a-day", _("Cost a day"), _("What it costs to keep it for one day, used or not."), PRICES),
    Figure("per-hour", _("Per hour"), _("What one hour of it costs, used or not."), PRICES),
    Figure(
        "to-its-end",
        _("To its end"),
        _("What it costs from its start to the end of its term, if you keep it that long."),
        PRICES,
    ),
    Figure(
        "from-now-to-its-end",
        _("From now to its end"),
        _("What it still costs until its term ends. Deleting it sooner saves the rest."),
        PRICES,
    ),
    Figure(
        "so-far",
        _("So far"),
        _("What it has cost since it was first ready."),
        _("Each hour × the price that was published for that hour; later prices change nothing backwards."),
    ),
    Figure(
        "cost-to-the-end",
        _("Cost to the end"),
        _("What an approval costs from now to the end of what is asked; a lasting limit counts 30 days."),
        PRICES,
    ),
    Figure(
        "per-million-tokens",
        _("Per million tokens"),
        _("What a million tokens would cost if the endpoint were always busy."),
        _("An estimate: price of an hour ÷ the tokens that this model and size give in an hour."),
    ),
    Figure(
        "per-million-tokens-so-far",
        _("Per million tokens so far"),
        _("What a million tokens have really cost, idle time included."),
        _("Cost so far ÷ tokens so far; -- until the first token."),
    ),
    Figure(
        "a-day-at-present-prices",
        _("A day, at present prices"),
        _("What all that the tenant has costs for one day."),
        PRICES,
    ),
    Figure(
        "30-days-like-this",
        _("30 days like this"),
        _("What thirty days cost if nothing is added and nothing ends."),
        _("A forecast: 30 × what one day costs now."),
    ),
    Figure(
        "idle-a-day",
        _("Of it idle, a day"),
        _("What you pay a day for endpoints that nobody calls."),
        _("Endpoints that are ready and had no call for seven days, at present prices."),
    ),
    Figure(
        "spent",
        _("Spent"),
        _("What was spent in the month, up to now."),
        _("Each hour × the price that was published for that hour; later prices change nothing backwards."),
    ),
    Figure(
        "forecast-for-the-month",
        _("Forecast for the month"),
        _("What the month will have cost at its end if nothing is added and nothing ends sooner."),
        _("What was spent, and what is there now × the hours that are left, at present prices."),
    ),
    # -- use ---------------------------------------------------------------------------------------------
    Figure("tokens-last-day", _("Tokens, last day"), _("How many tokens it wrote in the last 24 hours."), BY_GATEWAY),
    Figure("tokens-per-second", _("Tokens per second"), _("How many tokens it writes in a second."), BY_GATEWAY),
    Figure(
        "first-token",
        _("First token"),
        _("How long somebody waits for the first word of an answer; the median of an hour."),
        _("The gateway measures from the end of the question to the first byte of the answer."),
    ),
    Figure(
        "idle-share",
        _("Idle share"),
        _("The part of the time in which nobody called."),
        _("Hours without a call ÷ hours since it was first ready."),
    ),
    Figure(
        "running-or-on-the-way",
        _("Running or on the way"),
        _("How many endpoints, machines and namespaces the tenant has."),
        _("Counted now, without those that are given back."),
    ),
    Figure(
        "power",
        _("Power"),
        _("Whether the machine is on. Off keeps its disk, its GPU and its price."),
        _("As the provider reported it last."),
    ),
    # -- decisions ---------------------------------------------------------------------------------------
    Figure(
        "the-end",
        _("The end"),
        _("Until when the cost of a decision is counted."),
        _("The end of the term that is asked for; 30 days from now for a lasting limit."),
    ),
    Figure(
        "others-who-wait",
        _("Others who wait for the same"),
        _("How many others wait for the GPUs that an approval would take."),
        _("The approval is tried and undone; those who would come later because of it are counted."),
    ),
    # -- the estate --------------------------------------------------------------------------------------
    Figure("hosts", _("Hosts"), _("How many hosts the platform knows."), _("Without those that were removed.")),
    Figure(
        "hosts-open",
        _("Hosts open"),
        _("How many hosts take new work; the others join, are emptied or are in maintenance."),
        _("Counted now."),
    ),
    Figure("gpus", _("GPUs"), _("How many GPUs these hosts have."), _("As the provider reported them last.")),
    Figure(
        "empty-gpus",
        _("Empty GPUs"),
        _("GPUs of which nothing is given out: what whole GPUs are taken from."),
        _("Counted now, on open hosts."),
    ),
    Figure(
        "free-slots",
        _("Free slots"),
        _("How much is free in all. A bigger size needs free slots beside each other on one GPU."),
        _("Counted now, on healthy GPUs of open hosts."),
    ),
    Figure(
        "waiting-for-room",
        _("Waiting for room"),
        _("What is within every limit and has no place yet."),
        _("Counted now; whoever came first gets the first room that fits."),
    ),
    Figure(
        "findings",
        _("Findings"),
        _("Where the provider and our records differ, or something needs a look."),
        _("Compared with every reading of the provider; without those that are resolved."),
    ),
    Figure("tenants", _("Tenants"), _("How many tenants are concerned."), _("Counted from what stands there now.")),
    Figure("webhooks-on", _("On"), _("How many webhooks of tenants are sent messages."), _("Counted now.")),
    Figure(
        "webhooks-failing",
        _("Of them failing"),
        _("How many of these answered wrongly the last time; they are tried again."),
        _("Counted now."),
    ),
    Figure(
        "webhooks-off",
        _("Switched off"),
        _("Webhooks that failed for so long that they get nothing more until somebody switches them on."),
        _("Counted now."),
    ),
    Figure(
        "last-month-at-these-prices",
        _("Last month at these prices"),
        _("What the use of the last month would have cost at the prices that are being written."),
        _("Each hour of the last month × the new price; nothing is billed by it."),
    ),
    # -- pictures ----------------------------------------------------------------------------------------
    Figure(
        "cost-by-day",
        _("Cost by day"),
        _("What each day of the month cost, by what it was for. Days are days in UTC."),
        _("Each hour × the price that was published for that hour."),
    ),
    # -- the system --------------------------------------------------------------------------------------
    Figure(
        "oldest-due",
        _("Oldest due"),
        _("How long the thing that waits longest has waited for its turn. More than a minute: too few workers."),
        _("The doctor asks the database every few minutes."),
    ),
    Figure(
        "news-waiting",
        _("News waiting"),
        _("Changes that were made and not told yet to those who listen."),
        _("The doctor asks the database every few minutes."),
    ),
    Figure(
        "messages-waiting",
        _("Messages waiting"),
        _("Mail and calls of webhooks that are still to be sent, those that are tried again included."),
        _("The doctor asks the database every few minutes."),
    ),
    Figure(
        "stuck",
        _("Stuck"),
        _("Things that failed several times in a row and are tried again with growing pauses."),
        _("The doctor asks the database every few minutes."),
    ),
    Figure(
        "connections",
        _("Connections"),
        _("Connections to the database that are open now, and how many it takes."),
        _("The doctor asks the database every few minutes."),
    ),
    Figure(
        "usual-wait-for-a-person",
        _("Usual wait for a person"),
        _("How long a request waits until a person decides it: half of them waited less."),
        _("The median over the decisions that are listed; those of rules are left out."),
    ),
    # -- an endpoint, live ---------------------------------------------------------------------------------
    Figure(
        "requests-live",
        _("Requests"),
        _("How many requests ended in each minute. Failed is a status of 500 or more, or an answer that broke off."),
        BY_MINUTE,
    ),
    Figure(
        "time-to-first-token",
        _("Time to first token"),
        _("How long streams waited for their first word: half of them less, and 99 of 100 less."),
        _("The gateway measures from the end of the question to the first event; only streams have one."),
    ),
    Figure(
        "queue-depth",
        _("Queue depth"),
        _("The most requests that were being answered, and the most that waited, at a look in each minute."),
        BY_LOOK,
    ),
    Figure(
        "kv-cache-in-use",
        _("KV cache in use"),
        _("How full the memory for conversations was at its fullest; near 100 % requests wait."),
        BY_LOOK,
    ),
    Figure(
        "prefix-cache-hits",
        _("Prefix-cache hits"),
        _("Which part of the questions was known already, because others began alike; it need not be computed again."),
        BY_LOOK,
    ),
    # -- benchmarks ------------------------------------------------------------------------------------------
    Figure("tokens-written-a-second", _("Tokens written a second"), _("Of all its requests together."), BY_LOAD),
    Figure("requests-a-second", _("Requests a second"), _("How many were answered to their end."), BY_LOAD),
    Figure(
        "first-token-half",
        _("First token, half of all"),
        _("Half of the requests waited less for the first word."),
        BY_LOAD,
    ),
    Figure(
        "first-token-99",
        _("First token, 99 of 100"),
        _("99 of 100 requests waited less for the first word."),
        BY_LOAD,
    ),
    Figure(
        "between-tokens-half",
        _("Between tokens, half of all"),
        _("Half of the pauses between two pieces of an answer were shorter."),
        BY_LOAD,
    ),
    Figure(
        "between-tokens-99",
        _("Between tokens, 99 of 100"),
        _("99 of 100 pauses between two pieces of an answer were shorter."),
        BY_LOAD,
    ),
    Figure("failed-requests", _("Failed"), _("Requests that were refused, broke off or said nothing."), BY_LOAD),
)
