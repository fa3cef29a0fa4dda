//! Rules, routes, run-books and dashboards: that they agree with one another and with what the meter has, and what
//! they do in a real Prometheus and a real Alertmanager.

mod dashboards;
mod faults;
mod files;
mod live;
