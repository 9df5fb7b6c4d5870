// SPDX-License-Identifier: LGPL-2.1-or-later
// droverd's API. Every call has a deadline; every error is a Problem with a remedy where there is one.

const DEADLINE_MS = 120000;

export class Problem extends Error {
  constructor(status, message, remedy, code) {
    super(message);
    this.status = status;
    this.remedy = remedy || null;
    this.code = code || null;
  }
}

async function problem(response) {
  const text = await response.text().catch(() => "");
  try {
    const told = JSON.parse(text);
    if (told && typeof told.detail === "string") return new Problem(response.status, told.detail, told.remedy, told.code);
  } catch {
    // Not a problem of droverd's: told below by its status.
  }
  return new Problem(response.status, `the answer was HTTP status ${response.status}, without an explanation`);
}

export async function call(method, path, body, deadline = DEADLINE_MS) {
  let response;
  try {
    response = await fetch(path, {
      method,
      // Only a page of this origin can set it: see src/cli/ui-gate.h.
      headers: { "X-Drover": "1", ...(body === undefined ? {} : { "Content-Type": "application/json" }) },
      body: body === undefined ? undefined : JSON.stringify(body),
      signal: AbortSignal.timeout(deadline),
      cache: "no-store",
    });
  } catch (error) {
    if (error.name === "TimeoutError")
      throw new Problem(0, `there was no answer within ${deadline / 1000} s`, "what was asked may still happen: look at the jobs");
    throw new Problem(0, "the connection failed", "see whether drover ui and droverd still run");
  }
  if (!response.ok) throw await problem(response);
  return response.status === 204 ? null : response.json();
}

export const get = (path) => call("GET", path);
export const post = (path, body) => call("POST", path, body);

/* What not every droverd has: null where it's not there. */
export async function optional(path) {
  try {
    return await get(path);
  } catch (error) {
    if (error.status === 404) return null;
    throw error;
  }
}

export const name = encodeURIComponent;
