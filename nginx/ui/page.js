// Runs before MLflow's own script: choices that a fresh browser would make wrongly here, and a
// link to reports, whose scripts do not run inside the page.
(function () {
  "use strict";
  try {
    var storage = window.localStorage;
    // The Assistant is closed on this server; on localhost it would open by itself.
    storage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true");
    storage.setItem("mlflow.assistant.panelOpen_v1", "false");
    // Telemetry is off on this server: no banner that speaks of it.
    storage.setItem("mlflow.telemetry.info.alert.dismissed_v1", "true");
    storage.setItem("mlflow.settings.telemetry.enabled_v1", "false");
  } catch (error) {
    // Storage is blocked by the browser: the page works, and asks again.
  }
  // Charts report a harmless browser notice as an error.
  window.addEventListener("error", function (event) {
    if (/^ResizeObserver loop/.test(event.message || "")) {
      event.stopImmediatePropagation();
      event.preventDefault();
    }
  }, true);
  // The page's address names the file: #/experiments/1/runs/RUN/artifacts/PATH, or models/MODEL.
  document.addEventListener("animationstart", function (event) {
    if (event.animationName !== "stack-report-shown") return;
    var link = document.createElement("a");
    link.className = "stack-open-report";
    link.textContent = "Open with scripts";
    link.title = "In a tab of its own, apart from MLflow";
    link.target = "_blank";
    link.rel = "noopener";
    link.href = "#";
    link.addEventListener("mousedown", aim);
    link.addEventListener("focus", aim);
    event.target.appendChild(link);
  });
  function aim(event) {
    var place = /\/(runs|models)\/([^/?]+)\/artifacts\/([^?]+)/.exec(window.location.hash);
    if (place) event.target.href = "/view/" + place.slice(1).join("/");
  }
})();
