// Polls the JSON of a page while something can change, updates the page, and shows times in the time zone chosen in Airflow.
"use strict";

(() => {
  const root = document.documentElement;
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const MAX_POLL_SECONDS = 60;
  let airflowRoot = null;
  try {
    airflowRoot = window.parent === window ? null : window.parent.document.documentElement;
  } catch {
    airflowRoot = null; // framed by another origin, whose document cannot be read
  }

  const getStored = (key) => {
    try {
      return window.localStorage.getItem(key);
    } catch {
      return null;
    }
  };

  const applyTheme = () => {
    const chosenTheme = airflowRoot
      ? ["dark", "light"].find((name) => airflowRoot.classList.contains(name))
      : getStored("theme");
    const dark = chosenTheme === "dark" || (chosenTheme !== "light" && system.matches);
    root.classList.toggle("dark", dark);
    root.classList.toggle("light", !dark);
  };
  applyTheme();
  system.addEventListener("change", applyTheme);
  if (airflowRoot) new MutationObserver(applyTheme).observe(airflowRoot, { attributes: true, attributeFilter: ["class"] });

  // Airflow's URL has the region of the selected task instance: the iteration of a loop. It gives a tab only the map index.
  const followRegion = () => {
    const selected = new URLSearchParams(window.parent.location.search);
    const [region, index] = [selected.get("region_id"), selected.get("region_index")];
    const [, task, instance] = window.location.pathname.match(/^(.*\/task\/[^/]+\/[^/]+\/[^/]+)\/([^/]+)$/) ?? [];
    if (!region || !index || !task || decodeURIComponent(instance) === `${index}@${region}`) return;
    window.location.replace(`${task}/${encodeURIComponent(index)}@${encodeURIComponent(region)}`);
  };
  if (airflowRoot) {
    followRegion();
    window.setInterval(followRegion, 1000);
  }

  const getTimeZone = () => {
    const item = getStored("timezone");
    try {
      const name = item && item.startsWith('"') ? JSON.parse(item) : item;
      new Intl.DateTimeFormat("sv-SE", { timeZone: name || "UTC" });
      return name || "UTC";
    } catch {
      return "UTC";
    }
  };

  const formatTimes = (container) => {
    const styles = { time: { timeStyle: "medium" }, minute: { timeStyle: "short" } };
    const whole = { dateStyle: "short", timeStyle: "medium" };
    for (const each of container.querySelectorAll("time")) {
      const formatter = new Intl.DateTimeFormat("sv-SE", { timeZone: getTimeZone(), ...(styles[each.dataset.form] ?? whole) });
      each.title = `${each.dateTime} (${getTimeZone()})`;
      each.textContent = formatter.format(new Date(each.dateTime));
    }
  };

  const formatDuration = (seconds) => {
    if (seconds < 10) return `${seconds.toFixed(1)} s`;
    const total = Math.round(seconds);
    const [hours, minutes, rest] = [Math.floor(total / 3600), Math.floor(total / 60) % 60, total % 60];
    const pad = (number) => String(number).padStart(2, "0");
    if (hours) return `${hours} h ${pad(minutes)} min`;
    return minutes ? `${minutes} min ${pad(rest)} s` : `${rest} s`;
  };

  const formatTimeLeft = (seconds) => {
    if (seconds < 60) return `${Math.ceil(seconds)} s`;
    const minutes = Math.round(seconds / 60);
    return minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} min`;
  };

  const setText = (container, name, text) => {
    const element = container.querySelector(`[data-is="${name}"]`);
    if (element && element.textContent !== text) element.textContent = text;
  };

  const updateRun = (container, run) => {
    const bar = container.querySelector('[data-is="bar"]');
    if (bar) bar.value = run.progress;
    setText(container, "percent", `${Math.floor(run.progress * 100)} %`);
    if (run.duration !== null) setText(container, "duration", formatDuration(run.duration));
    const end = container.querySelector('[data-is="end"]');
    if (!end) return;
    end.hidden = run.expected_end === null;
    if (run.expected_end === null) return;
    const time = document.createElement("time");
    time.dateTime = run.expected_end;
    time.dataset.form = run.is_rough ? "minute" : "time";
    container.querySelector('[data-is="expected_end"]').replaceChildren(time);
    setText(container, "left", `${run.is_rough ? "about " : ""}${formatTimeLeft(run.seconds_left)}`);
    formatTimes(end);
  };

  // Without https, a browser has no clipboard: then the text is selected and copied as before there was one.
  const copy = async (button) => {
    const code = button.closest(".copyable").querySelector("code");
    let done = true;
    try {
      await navigator.clipboard.writeText(code.textContent);
    } catch {
      window.getSelection().selectAllChildren(code);
      done = document.execCommand("copy");
    }
    button.textContent = done ? "Copied" : "Selected";
    window.setTimeout(() => { button.textContent = "Copy"; }, 2000);
  };
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button.copy");
    if (button) copy(button);
  });
  document.addEventListener("change", (event) => {
    if (event.target.matches("select[data-submit]")) event.target.form.requestSubmit();
  });

  const prepare = (main) => {
    formatTimes(main);
    for (const button of main.querySelectorAll("button.copy")) button.hidden = false;
    document.dispatchEvent(new CustomEvent("flows:prepare", { detail: main }));
  };

  // Returns a function that restores the focus on a replaced page: links are matched by href, other elements by position.
  const saveFocus = (main) => {
    const active = document.activeElement;
    if (!active || !main.contains(active)) return () => {};
    const sameTag = (container) => [...container.querySelectorAll(active.localName)];
    const [href, index] = [active.getAttribute("href"), sameTag(main).indexOf(active)];
    return (fresh) => {
      const match = href === null ? sameTag(fresh)[index] : sameTag(fresh).find((each) => each.getAttribute("href") === href);
      match?.focus({ preventScroll: true });
    };
  };

  // Replaces the page without a reload; open details, selected options, typed text and the focus are preserved.
  const replacePage = async (main) => {
    const response = await fetch(window.location.href);
    const fresh = new DOMParser().parseFromString(await response.text(), "text/html").getElementById("main");
    if (!fresh) return main;
    const restoreFocus = saveFocus(main);
    const selected = [...main.querySelectorAll("select")].map((each) => each.value);
    const typed = [...main.querySelectorAll("input[type=search]")].map((each) => each.value);
    const open = [...main.querySelectorAll("details")].map((each) => each.open);
    document.adoptNode(fresh);
    document.dispatchEvent(new CustomEvent("flows:replace", { detail: { main, fresh } }));
    main.replaceWith(fresh);
    [...fresh.querySelectorAll("details")].forEach((each, index) => {
      if (index < open.length) each.open = open[index];
    });
    [...fresh.querySelectorAll("select")].forEach((each, index) => {
      if ([...each.options].some((option) => option.value === selected[index])) each.value = selected[index];
    });
    [...fresh.querySelectorAll("input[type=search]")].forEach((each, index) => {
      if (index < typed.length) each.value = typed[index];
    });
    restoreFocus(fresh);
    // for screen readers
    if (fresh.dataset.announcement !== main.dataset.announcement) document.getElementById("announcement").textContent = fresh.dataset.announcement ?? "";
    prepare(fresh);
    return fresh;
  };

  const poll = async (main) => {
    const response = await fetch(main.dataset.json, { headers: { accept: "application/json" } });
    if (response.status === 401 || response.status === 403) return replacePage(main); // the error page does not poll
    if (!response.ok) throw new Error(String(response.status));
    const page = await response.json();
    if (page.version !== main.dataset.version) return replacePage(main);
    if (page.run) updateRun(main, page.run);
    for (const run of page.runs ?? []) {
      const row = main.querySelector(`[data-run="${CSS.escape(run.flow_run_id)}"]`);
      if (row) updateRun(row, run);
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
        failedPolls = Math.min(failedPolls + 1, 5); // Airflow is not reachable: back off
      }
      polling = false;
      schedulePoll();
    };
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden && main.dataset.refreshAfter) next();
      else window.clearTimeout(timer);
    });
    prepare(main);
    schedulePoll();
  });
})();
