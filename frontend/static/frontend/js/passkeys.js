// Says on the page when a passkey was not used: the log-in library only tells by an event. Also why passkeys cannot
// work here: browsers bind them to a host name, never to an IP address.

const problem = document.getElementById("passkey_problem");

document.addEventListener("allauth.error", (event) => {
  event.preventDefault();
  if (problem) {
    problem.hidden = false;
  }
});

const byNumber = /^(\d{1,3}\.){3}\d{1,3}$|^\[/.test(window.location.hostname);
for (const note of document.querySelectorAll("[data-passkeys-need-a-name]")) {
  note.hidden = !byNumber;
}
