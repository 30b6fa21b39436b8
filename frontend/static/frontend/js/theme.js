/* Before the first paint: the theme this person chose here. Anything unreadable means: as the system has it. */
try {
  const theme = localStorage.getItem("theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch { /* storage is refused: the system's theme stays */ }
