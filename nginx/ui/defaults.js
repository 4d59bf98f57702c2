// Runs before MLflow's own script: choices that a fresh browser would make wrongly here.
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
})();
