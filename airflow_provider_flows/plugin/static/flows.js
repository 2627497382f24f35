// Keeps a page of flow runs as it is at the service: looks again while something goes on, and shows moments in Airflow's time zone.
"use strict";

(() => {
  const root = document.documentElement;
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const MAX_POLL_SECONDS = 60;
  let outer = null;
  try {
    outer = window.parent === window ? null : window.parent.document.documentElement;
  } catch {
    outer = null; // framed by another site: then it has no say
  }

  const stored = (key) => {
    try {
      return window.localStorage.getItem(key);
    } catch {
      return null;
    }
  };

  const theme = () => {
    const chosenTheme = outer ? ["dark", "light"].find((name) => outer.classList.contains(name)) : stored("theme");
    const dark = chosenTheme === "dark" || (chosenTheme !== "light" && system.matches);
    root.classList.toggle("dark", dark);
    root.classList.toggle("light", !dark);
  };
  theme();
  system.addEventListener("change", theme);
  if (outer) new MutationObserver(theme).observe(outer, { attributes: true, attributeFilter: ["class"] });

  const zone = () => {
    const item = stored("timezone");
    try {
      const name = item && item.startsWith('"') ? JSON.parse(item) : item;
      new Intl.DateTimeFormat("sv-SE", { timeZone: name || "UTC" });
      return name || "UTC";
    } catch {
      return "UTC";
    }
  };

  const showTimes = (within) => {
    const formatter = new Intl.DateTimeFormat("sv-SE", { timeZone: zone(), dateStyle: "short", timeStyle: "medium" });
    for (const each of within.querySelectorAll("time")) {
      const when = new Date(each.dateTime);
      each.title = `${each.dateTime} (${zone()})`;
      each.textContent = formatter.format(when);
    }
  };

  const span = (seconds) => {
    if (seconds < 10) return `${seconds.toFixed(1)} s`;
    const all = Math.round(seconds);
    const [hours, minutes, rest] = [Math.floor(all / 3600), Math.floor(all / 60) % 60, all % 60];
    const two = (number) => String(number).padStart(2, "0");
    if (hours) return `${hours} h ${two(minutes)} min`;
    return minutes ? `${minutes} min ${two(rest)} s` : `${rest} s`;
  };

  const set = (within, name, text) => {
    const found = within.querySelector(`[data-is="${name}"]`);
    if (found && found.textContent !== text) found.textContent = text;
  };

  const move = (within, run) => {
    const bar = within.querySelector('[data-is="bar"]');
    if (bar) bar.value = run.progress;
    set(within, "percent", `${Math.floor(run.progress * 100)} %`);
    if (run.duration !== null) set(within, "duration", span(run.duration));
    const end = within.querySelector('[data-is="end"]');
    if (!end) return;
    end.hidden = run.expected_end === null;
    if (run.expected_end === null) return;
    const time = document.createElement("time");
    time.dateTime = run.expected_end;
    within.querySelector('[data-is="expected_end"]').replaceChildren(time);
    set(within, "left", `(${span(Math.max(0, (new Date(run.expected_end) - Date.now()) / 1000))} left)`);
    showTimes(end);
  };

  const facts = (model) => {
    const list = document.createElement("dl");
    for (const [name, value] of Object.entries(model)) {
      if (value === null || value === 0) continue;
      const pair = [document.createElement("dt"), document.createElement("dd")];
      pair[0].textContent = name.replace("_", " ");
      pair[1].textContent = typeof value === "number" ? value.toLocaleString("en") : value;
      list.append(...pair);
    }
    return list;
  };

  const showFileInfo = async (container) => {
    const response = await fetch(container.dataset.about, { headers: { accept: "application/json" } }).catch(() => null);
    const info = response && response.ok ? await response.json().catch(() => ({})) : {};
    const label = container.closest(".output").querySelector('[data-is="file-info"]');
    if (!label.textContent && info.media_type) label.textContent = info.media_type;
    if (info.model) container.replaceChildren(facts(info.model));
    if (!info.is_image) return;
    const image = document.createElement("img");
    image.src = container.dataset.image;
    image.alt = container.dataset.name;
    container.replaceChildren(image);
  };

  const ready = (main) => {
    showTimes(main);
    main.querySelectorAll("[data-about]").forEach(showFileInfo);
  };

  // What has the focus is found again on a page that is made anew: a link by where it leads, anything else by its place.
  const focused = (main) => {
    const it = document.activeElement;
    if (!it || !main.contains(it)) return () => {};
    const alike = (within) => [...within.querySelectorAll(it.localName)];
    const [href, index] = [it.getAttribute("href"), alike(main).indexOf(it)];
    return (fresh) => {
      const found = href === null ? alike(fresh)[index] : alike(fresh).find((each) => each.getAttribute("href") === href);
      found?.focus({ preventScroll: true });
    };
  };

  // The whole page anew, without a reload: what is open stays open, what is chosen chosen, and what has the focus keeps it.
  const replacePage = async (main) => {
    const response = await fetch(window.location.href);
    const fresh = new DOMParser().parseFromString(await response.text(), "text/html").getElementById("main");
    if (!fresh) return main;
    const focus = focused(main);
    const chosen = [...main.querySelectorAll("select")].map((each) => each.value);
    const open = [...main.querySelectorAll("details")].map((each) => each.open);
    document.adoptNode(fresh);
    main.replaceWith(fresh);
    [...fresh.querySelectorAll("details")].forEach((each, index) => {
      if (index < open.length) each.open = open[index];
    });
    [...fresh.querySelectorAll("select")].forEach((each, index) => {
      if ([...each.options].some((option) => option.value === chosen[index])) each.value = chosen[index];
    });
    focus(fresh);
    // for who hears the page
    if (fresh.dataset.announcement !== main.dataset.announcement) document.getElementById("announcement").textContent = fresh.dataset.announcement ?? "";
    ready(fresh);
    return fresh;
  };

  const poll = async (main) => {
    const response = await fetch(main.dataset.json, { headers: { accept: "application/json" } });
    if (response.status === 401 || response.status === 403) return replacePage(main); // it says so, and does not look again
    if (!response.ok) throw new Error(String(response.status));
    const page = await response.json();
    if (page.version !== main.dataset.version) return replacePage(main);
    if (page.run) move(main, page.run);
    for (const run of page.runs ?? []) {
      const row = main.querySelector(`[data-run="${CSS.escape(run.flow_run_id)}"]`);
      if (row) move(row, run);
    }
    if (page.refresh_after === null) delete main.dataset.refreshAfter;
    return main;
  };

  document.addEventListener("DOMContentLoaded", () => {
    let main = document.getElementById("main");
    let failedPolls = 0;
    let timer = null;
    let polling = false;
    const schedulePoll = () => {
      window.clearTimeout(timer);
      const refreshAfter = Number(main.dataset.refreshAfter);
      if (!refreshAfter || document.hidden) return;
      timer = window.setTimeout(next, 1000 * Math.min(MAX_POLL_SECONDS, refreshAfter * 2 ** failedPolls));
    };
    const next = async () => {
      if (polling) return;
      polling = true;
      try {
        main = await poll(main);
        failedPolls = 0;
      } catch {
        failedPolls = Math.min(failedPolls + 1, 5); // Airflow itself is away: look more and more rarely
      }
      polling = false;
      schedulePoll();
    };
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden && main.dataset.refreshAfter) next();
      else window.clearTimeout(timer);
    });
    ready(main);
    schedulePoll();
  });
})();
