// Keeps a page of flow runs as it is at the service: looks again while something goes on, and shows moments in Airflow's time zone.
"use strict";

(() => {
  const root = document.documentElement;
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const LONGEST = 60;
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
    const told = outer ? ["dark", "light"].find((name) => outer.classList.contains(name)) : stored("theme");
    const dark = told === "dark" || (told !== "light" && system.matches);
    root.classList.toggle("dark", dark);
    root.classList.toggle("light", !dark);
  };
  theme();
  system.addEventListener("change", theme);
  if (outer) new MutationObserver(theme).observe(outer, { attributes: true, attributeFilter: ["class"] });

  const zone = () => {
    const told = stored("timezone");
    try {
      const name = told && told.startsWith('"') ? JSON.parse(told) : told;
      new Intl.DateTimeFormat("sv-SE", { timeZone: name || "UTC" });
      return name || "UTC";
    } catch {
      return "UTC";
    }
  };

  const moments = (within) => {
    const words = new Intl.DateTimeFormat("sv-SE", { timeZone: zone(), dateStyle: "short", timeStyle: "medium" });
    for (const each of within.querySelectorAll("time")) {
      const when = new Date(each.dateTime);
      each.title = `${each.dateTime} (${zone()})`;
      each.textContent = words.format(when);
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
    moments(end);
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

  const tell = async (place) => {
    const answer = await fetch(place.dataset.about, { headers: { accept: "application/json" } }).catch(() => null);
    const told = answer && answer.ok ? await answer.json().catch(() => ({})) : {};
    const known = place.closest(".output").querySelector('[data-is="told"]');
    if (!known.textContent && told.media_type) known.textContent = told.media_type;
    if (told.model) place.replaceChildren(facts(told.model));
    if (!told.image) return;
    const image = document.createElement("img");
    image.src = place.dataset.image;
    image.alt = place.dataset.name;
    place.replaceChildren(image);
  };

  const ready = (main) => {
    moments(main);
    main.querySelectorAll("[data-about]").forEach(tell);
  };

  // What has the focus is found again on a page that is made anew: a link by where it leads, anything else by its place.
  const focused = (main) => {
    const it = document.activeElement;
    if (!it || !main.contains(it)) return () => {};
    const alike = (within) => [...within.querySelectorAll(it.localName)];
    const [href, place] = [it.getAttribute("href"), alike(main).indexOf(it)];
    return (fresh) => {
      const found = href === null ? alike(fresh)[place] : alike(fresh).find((each) => each.getAttribute("href") === href);
      found?.focus({ preventScroll: true });
    };
  };

  // The whole page anew, without a reload: what is open stays open, what is chosen chosen, and what has the focus keeps it.
  const renew = async (main) => {
    const answer = await fetch(window.location.href);
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").getElementById("main");
    if (!fresh) return main;
    const focus = focused(main);
    const chosen = [...main.querySelectorAll("select")].map((each) => each.value);
    const open = [...main.querySelectorAll("details")].map((each) => each.open);
    document.adoptNode(fresh);
    main.replaceWith(fresh);
    [...fresh.querySelectorAll("details")].forEach((each, place) => {
      if (place < open.length) each.open = open[place];
    });
    [...fresh.querySelectorAll("select")].forEach((each, place) => {
      if ([...each.options].some((option) => option.value === chosen[place])) each.value = chosen[place];
    });
    focus(fresh);
    // for who hears the page
    if (fresh.dataset.told !== main.dataset.told) document.getElementById("told").textContent = fresh.dataset.told ?? "";
    ready(fresh);
    return fresh;
  };

  const look = async (main) => {
    const answer = await fetch(main.dataset.json, { headers: { accept: "application/json" } });
    if (answer.status === 401 || answer.status === 403) return renew(main); // it says so, and does not look again
    if (!answer.ok) throw new Error(String(answer.status));
    const told = await answer.json();
    if (told.mark !== main.dataset.mark) return renew(main);
    if (told.run) move(main, told.run);
    for (const run of told.runs ?? []) {
      const row = main.querySelector(`[data-run="${CSS.escape(run.flow_run_id)}"]`);
      if (row) move(row, run);
    }
    if (told.again === null) delete main.dataset.again;
    return main;
  };

  document.addEventListener("DOMContentLoaded", () => {
    let main = document.getElementById("main");
    let misses = 0;
    let timer = null;
    let looking = false;
    const later = () => {
      window.clearTimeout(timer);
      const again = Number(main.dataset.again);
      if (!again || document.hidden) return;
      timer = window.setTimeout(next, 1000 * Math.min(LONGEST, again * 2 ** misses));
    };
    const next = async () => {
      if (looking) return;
      looking = true;
      try {
        main = await look(main);
        misses = 0;
      } catch {
        misses = Math.min(misses + 1, 5); // Airflow itself is away: look more and more rarely
      }
      looking = false;
      later();
    };
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden && main.dataset.again) next();
      else window.clearTimeout(timer);
    });
    ready(main);
    later();
  });
})();
