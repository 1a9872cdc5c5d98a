# SPDX-License-Identifier: GPL-2.0-or-later
"""Campaigns: a table of parameters, run on all cores or on a cluster, and the report on it.

    spec.py      a TOML file -> points
    points.py    what one point is, and what comes of it: rows of figures
    campaign.py  the directory that keeps what is done, so that nothing is lost and nothing done twice
    workers.py   who works: processes of this machine, or a Dask cluster
    findings.py  what the rows say: who wins where
    page.py      the report
"""
