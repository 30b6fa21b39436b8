"""Every error code and its help text: what it means and what to do. Pure data, served at `/api/errors/<code>`.

Codes are stable: clients branch on them. `tests/api` fails when something raises a code that has no help here.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final


def _(text: str) -> str:
    """Mark a text for the message catalogue; whoever shows it translates it."""
    return text


HELP: Final[Mapping[str, str]] = MappingProxyType(
    {
        # -- the protocol ------------------------------------------------------------------------------
        "invalid": _(
            "The request does not have the form that the operation takes. `errors` names each field and what "
            "is wrong with it; nothing was changed. Compare with the operation's schema in `/api/docs`."
        ),
        "unauthenticated": _(
            "There is no valid proof of who you are: no token, or one that is wrong, expired, revoked "
            "or belongs to somebody who has left. Make a new one with `tenantry login`."
        ),
        "second-factor": _(
            "The account has, or must have, a second factor. Log in to the portal with it; tokens for the "
            "API and the command line are made there under Me."
        ),
        "forbidden": _(
            "You may see the object, but your role does not allow this. `data.needed` names the role that does."
        ),
        "token-read-only": _("The token may only read. Use one that was made without `read_only`."),
        "token-narrowed": _("The token is narrowed to one tenant and cannot be used for this. Use one that is not."),
        "not-a-demo": _("Only a demo, where every provider is simulated, can be entered without a password. Log in."),
        "csrf": _("A change by a browser session needs the CSRF token of that session in the header `X-CSRFToken`."),
        "not-found": _(
            "There is no such object, or you may not see it: both look the same on purpose. Check the name, "
            "the tenant and the account you are logged in with."
        ),
        "no-route": _("There is no operation at this address. `/api/docs` lists all of them."),
        "method-not-allowed": _("The address exists, this method does not. The header `Allow` lists those that do."),
        "not-acceptable": _(
            "Answers are `application/json` (the event stream is `text/event-stream`). Leave the header `Accept` out."
        ),
        "conflict": _("The present state of the object does not allow this. `detail` says which state is in the way."),
        "busy": _("Many changes at once touched the same objects and this one lost every time. Send it again."),
        "idempotency-running": _(
            "A request with the same `Idempotency-Key` is still running. Wait a moment and send it "
            "again: you will get its answer."
        ),
        "idempotency-mismatch": _(
            "This `Idempotency-Key` was used for another request. Use a new key for each thing you want done."
        ),
        "version-mismatch": _(
            "The object changed since you read it. Read it again, look at the difference, and send "
            "the new `ETag` in `If-Match`."
        ),
        "precondition-required": _(
            "A header is missing: `Idempotency-Key` on POST with a token, or `If-Match` with the "
            "object's `ETag` on PUT, PATCH and DELETE."
        ),
        "too-large": _("The body is larger than 1 MiB."),
        "unsupported-media-type": _("Send the body as `application/json` in UTF-8."),
        "rate-limited": _("Too many requests of this kind. Wait as long as `Retry-After` says."),
        "gone": _("This gateway was removed: it stops serving and does not call again."),
        "dependency-down": _(
            "A part of the control plane (its database) does not answer. Nothing was changed; repeat "
            "after `Retry-After` seconds. Running endpoints are not touched by it."
        ),
        "sealed": _(
            "A secret that is stored here does not open with the master keys that are set. Nothing was changed, and "
            "repeating does not help: an operator has to set the master key again that it was sealed with "
            "(`TENANTRY_MASTER_KEYS`)."
        ),
        "no-certificate": _(
            "No certificate can be made for the endpoints of this gateway's tenant: the provider has no authority or "
            "files yet, they are for other names, or they have ended. `detail` says which; an operator stores the "
            "secret of the provider anew, and gateways ask again by themselves."
        ),
        "internal": _(
            "This is a fault of ours. Quote `request_id` to the operators; the log has the details. Whether "
            "the change was made can be seen by reading the object, or by repeating with the same `Idempotency-Key`."
        ),
        # -- input that has the right form and is wrong all the same --------------------------------------
        "not-supported": _(
            "The value is known to the product but nothing here can do it yet (or this provider "
            "cannot). `detail` says what; leave the field out or choose another value."
        ),
        "not-ready": _(
            "The object is still being built, or is being given back. "
            "`tenantry wait NOUN/NAME --for Ready` waits for it."
        ),
        "no-authority": _(
            "The machine was made before there were SSH certificates. It takes the keys that it was made with; make it "
            "anew to log in with certificates."
        ),
        "not-a-key": _(
            "Send one line with an Ed25519, ECDSA or RSA public key, as `ssh-keygen -t ed25519` writes it into the "
            "file with `.pub`. `tenantry ssh` makes one by itself."
        ),
        "key-size": _("An RSA key needs 3072 bits at least. `ssh-keygen -t ed25519` makes one that is short and good."),
        "private-key": _(
            "The private half of a key was sent. It was not kept; but whoever saw it on its way can use it, so make "
            "another pair and send the file with `.pub`."
        ),
        "unknown-field": _("The object has no field of this name."),
        "unknown-model": _("No enabled served model has this name. `/api/v1/served-models` lists them."),
        "unknown-product": _("No GPU product has this id. `/api/v1/gpu-products` lists them."),
        "unknown-profile": _("The GPU product has no MIG profile of this name. `/api/v1/gpu-products` lists them."),
        "unknown-dimension": _(
            "A quota or price speaks of something that does not exist. Dimensions are "
            "`gpu.<product>.slices`, `gpu.<product>.<profile>`, `vcpu`, `memory_gib`, `storage_gib`, `machines`, "
            "`boundaries`, `endpoints`, `spend_month`, `tokens_month` and `token_spend_month`."
        ),
        "link-closed": _(
            "The link was used, withdrawn, is over, or is for somebody else. Ask whoever made it for a new one."
        ),
        "too-many-invitations": _("The tenant has as many open invitations as it may have. Withdraw some."),
        "unknown-person": _("Nobody with this e-mail has an account. An operator can add one."),
        "unknown-rule": _("A policy has no rule of this name."),
        "unknown-value": _("A policy names something that does not exist here."),
        "unknown-kind": _("No such kind exists here."),
        "tier-needs-whole-gpu": _(
            "The isolation tier shares a GPU with nobody, so it needs whole GPUs: leave the "
            "profile out, or choose the tier `shared`."
        ),
        "look-alike": _("The name looks like another one and could be mistaken for it. Choose a plain name."),
        "reserved": _("The name is reserved. Choose another one."),
        "length": _("The text is too short or too long; `detail` gives the limits."),
        "control-characters": _("The text holds control characters. Send plain text."),
        "label-key": _("A label's key or value has characters that are not allowed."),
        "too-many": _("There are more entries than allowed; `detail` gives the limit."),
        "too-much": _("What is asked for is more than one answer carries. Choose a shorter time."),
        "too-exact": _("The amount has more decimals than the currency. Give at most two."),
        "too-deep": _("Tenants are at most three levels deep."),
        "out-of-range": _("The number is outside its range; `detail` gives it."),
        "in-the-past": _("Prices are never changed backwards: let them start now or later."),
        "not-priced": _("This dimension has no price of its own."),
        "other-currency": _("All price lists have one currency."),
        "not-pinned": _("A served model is pinned to a full commit, never to a branch or tag."),
        "staged-already": _("This provider has the files of the model, or they are on their way there."),
        "model-retired": _("The model is retired: nobody can deploy it. Offer it again first."),
        "config-needed": _(
            "The catalogue has no figures of this repository. Give its config.json as it is at the commit: it is "
            "checked as it stands, and nothing is fetched."
        ),
        "model-refused": _(
            "What its config.json or its files say is not served: an unknown architecture, code of its own, weights "
            "that are no safetensors. The field says which."
        ),
        "secret-in-config": _(
            "A provider's configuration holds something that looks like a secret. Set it as a "
            "credential: those are stored encrypted."
        ),
        "bad-url": _(
            "Webhooks lead to https addresses on the public Internet, or in networks that the operator allows; "
            "`detail` says what is wrong with this one."
        ),
        "unknown-notification": _("There is no notification of this kind; `/api/v1/notification-kinds` lists them."),
        "weak-password": _("The password is too short or too common."),
        "wrong-password": _("The old password is wrong."),
        "wrong-action": _("This action does not fit the finding."),
        # -- names, state ---------------------------------------------------------------------------------
        "name-taken": _("Another live object of this kind has the name. Choose another one, or change that object."),
        "email-taken": _("Somebody else has this e-mail."),
        "price-list-exists": _("A price list of this name, or for this place from this moment on, is there already."),
        "immutable": _(
            "What was asked to change is fixed while the object lives; `data.fields` names it. Make a new "
            "object, or renew the term of this one."
        ),
        "deleting": _("The object is being given back and takes no more changes."),
        "not-off": _(
            "A machine gets another size only while it is off for certain: switch it off, wait until it says that it "
            "is switched off, and ask again."
        ),
        "term-over": _("The term is over and what is left is grace: renew it first."),
        "rollout-running": _(
            "Another revision is taking over at this endpoint; `data` has its number. Promote it or abort it first."
        ),
        "no-rollout": _("No revision is taking over at this endpoint, so there is nothing to promote, hold or abort."),
        "move-running": _(
            "The endpoint is on its way to another place, or its last move is still being cleared up. Wait for the end "
            "of that, finish it, or undo it."
        ),
        "no-move": _("The endpoint is not moving, so there is nothing to cut over, finish or undo."),
        "moves-nowhere": _("The endpoint is where it was asked to go. Nothing has to be done."),
        "no-revision-before": _("This endpoint has served no other revision, so there is none to go back to."),
        "address-refused": _(
            "The endpoint's address is outside the ranges that its provider declares (`address_ranges`). An operator "
            "can add to them."
        ),
        "benchmark-running": _("A benchmark of this endpoint runs already. Wait for its end, or cancel it."),
        "unknown-revision": _("The endpoint has no revision of this number; `tenantry get revisions` lists them."),
        "serves-already": _("The endpoint serves that revision already. Nothing has to be done."),
        "no-room": _(
            "There is no room, or no quota, for a unit beside those of the endpoint, and the rollout was to be refused "
            "then. Ask without `must_have_room`: the old replicas stop before the new ones start."
        ),
        "host-full": _(
            "The host where the machine is has no room for the new size; `data` says how large it can become there. "
            "Ask for less, or make a new machine and delete this one."
        ),
        "owned-by-product": _("A product owns this allocation; change or delete the product."),
        "disabled": _("It is disabled; enable it first."),
        "in-use": _("It is still used; `data` says by how much."),
        "not-empty": _("It still holds live objects; `data` counts them."),
        "not-free": _("The window is not free."),
        "host-state": _(
            "The host is in a state that does not allow this step; `data` has the present and the needed states."
        ),
        "plan-running": _("Another plan runs on this host. Wait for it or cancel it."),
        "plan-state": _("The plan is in a state that does not allow this."),
        "layout-impossible": _(
            "The GPUs cannot be carved like that: the host has no such GPU, the product no such profile, or the "
            "profiles do not fit on one GPU together. `detail` says which; `/api/v1/gpu-products` has the "
            "profiles of each product."
        ),
        "layout-present": _("The GPUs have that layout already. Nothing has to be done."),
        "device-faulty": _("The GPU is faulty and is not carved. Repair it first, or leave it out."),
        "device-healthy": _("The GPU is not faulty. Drain its host instead."),
        "provider-enabled": _("Write-off is for providers that will not come back: switch the provider off first."),
        "not-placed": _("It stands on no provider: it has no place yet, or none any more."),
        "resolved": _("The finding is resolved already."),
        "key-ended": _("The key is revoked or expired. Make a new one."),
        "stale-lease": _(
            "A gateway's later word about its parts of budgets was heard already. It asks again by itself."
        ),
        "too-many-keys": _("The endpoint has as many live keys as it may. Revoke some."),
        "too-many-webhooks": _("The tenant has as many webhooks as it may. Remove some."),
        "too-many-tokens": _("There are as many live tokens as allowed. Revoke some."),
        "no-token": _("The request was not sent with a token, so there is none to end."),
        "tenant-suspended": _(
            "The tenant (or one above it) is suspended: nothing new can be started. Ask who suspended it."
        ),
        "tenant-closing": _("The tenant is being closed."),
        "tenant-closed": _("The tenant is closed."),
        "not-suspended": _("It is not suspended."),
        # -- quota, policy, approval ------------------------------------------------------------------------
        "quota-exceeded": _(
            "A limit of the tenant or of one above it is in the way. `data` lists each limit, its use, "
            "what is missing and a ready-made request for exactly that; `on_shortage=request` files it in one step."
        ),
        "policy-forbids": _(
            "A policy of the tenant or of one above it forbids this; `data` names the rule, who set it "
            "and what is allowed."
        ),
        "policy-widens": _("A policy can only narrow what stands above it; `data` names the rule and who set it."),
        "inherits": _("The tenant inherits this limit: raise the one above."),
        "no-parent": _("Only a platform operator sets the limits of a tenant without a parent."),
        "beyond-parent": _("A child cannot get more than its parent has."),
        "outcome-worse": _(
            "What was approved would now come out worse than the proof you saw. `data` holds both; "
            "decide again to accept it."
        ),
        "own-request": _("Nobody decides his own request, nor as a delegate for whoever asked."),
        "not-your-stage": _("The present stage of the request is somebody else's to decide."),
        "not-requester": _("Only who asked can change or withdraw a request."),
        "decided": _("The request is decided already."),
        "decision-refused": _("The database refused the decision: it is one's own, or the stage has one."),
        "asked-already": _("You have asked for this already; the request is open."),
        "too-many-requests": _("You have as many open requests as you may. Withdraw some."),
        "more-than-asked": _("A decision grants at most what was asked for."),
        "nothing-left": _("Nothing would be granted: deny the request instead."),
        "no-longer-needed": _("What the request is for is there already, or gone."),
        "requester-gone": _("Who asked has left."),
        "above-you": _("This belongs to a tenant above yours."),
        "not-above": _("This is done from a tenant above, not from the tenant itself."),
        # -- people -------------------------------------------------------------------------------------
        "member-already": _("The person is a member. Change the role instead."),
        "not-a-member": _("The person is no member of the tenant."),
        "not-active": _("The person is not active, or not visible to you."),
        "last-owner": _("The last owner cannot go without a successor; `data` names the tenants."),
        "last-operator": _("The last operator cannot go."),
        "left": _("The person has left."),
        "not-left": _("Only who has left can be erased."),
        "not-owner": _(
            "Ownership is passed on by who owns the tenant itself; an owner through the tenant above names "
            "another owner by changing a role."
        ),
        "own-account": _("Nobody does this to his own account."),
        "own-roles": _("Nobody changes his own platform roles."),
    }
)
