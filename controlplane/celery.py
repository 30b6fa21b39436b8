"""The Celery app: routes, beat schedule, safety settings (see `docs/architecture.md`, "Doorbell").

Messages are hints: losing, repeating or delaying any of them is harmless, the sweep finds the work.
"""

from __future__ import annotations

import gc
import os
from typing import Any

from celery import Celery, signals
from kombu.entity import Queue

from controlplane import folder_broker
from controlplane.env import environment

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "controlplane.settings")
env = environment()
folder_broker.register()
app = Celery("tenantry")
app.conf.update(
    broker_url=env.broker_url.get_secret_value(),
    broker_connection_retry_on_startup=True,
    broker_transport_options=(
        {
            "data_folder_in": str(env.broker_folder / "data"),
            "data_folder_out": str(env.broker_folder / "data"),
            "control_folder": str(env.broker_folder / "control"),
            "polling_interval": 0.05,
        }
        if env.broker_url.get_secret_value().startswith("filesystem")
        else {"socket_connect_timeout": 2, "socket_timeout": 5}
    ),
    task_ignore_result=True,
    task_acks_late=True,
    task_reject_on_worker_lost=False,  # the sweep repeats lost work; a poison message must not loop
    worker_prefetch_multiplier=1,
    task_time_limit=120,
    task_soft_time_limit=90,
    task_default_queue="passes",
    task_queues=[Queue("passes"), Queue("inventory")],
    task_routes={"provisioners.inventory": {"queue": "inventory"}},
    worker_hijack_root_logger=False,
    worker_send_task_events=False,
    worker_enable_remote_control=False,
    imports=("provisioners.tasks",),
    beat_schedule={
        "sweep": {"task": "provisioners.sweep", "schedule": env.sweep_s, "options": {"expires": env.sweep_s}},
        "notify": {"task": "provisioners.notify", "schedule": env.sweep_s, "options": {"expires": env.sweep_s}},
    },
    beat_schedule_filename=str(env.state_dir / "celerybeat-schedule"),
    timezone="UTC",
)


@signals.worker_init.connect  # type: ignore[untyped-decorator] # celery has no types
def _settle_memory(**_: Any) -> None:
    """Set aside what every process of a worker shares: forks stay small, and its end does not walk through it all."""
    gc.freeze()
