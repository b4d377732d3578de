## Nim: greets by /?name=Ann, and counts the words of a text that is POSTed. kvm_api.h is C, as is what Nim makes: its functions are
## imported as they are.
##
##   nim c --mm:arc -d:release --passC:-Iguest-sdk/c --passL:-static words.nim

import std/[algorithm, strutils, tables, uri]

{.push header: "kvm_api.h".}
proc setBackendGet(handler: proc (url, arg: cstring) {.cdecl.}) {.importc: "set_backend_get".}
proc setBackendPost(handler: proc (url, arg, kind: cstring, data: pointer, len: csize_t) {.cdecl.}) {.importc: "set_backend_post".}
proc waitForRequests() {.importc: "wait_for_requests", noreturn.}
proc backendResponse(status: int16, kind: cstring, kindLen: csize_t, body: cstring, len: csize_t)
  {.importc: "backend_response", noreturn.}
{.pop.}

proc respond(status: int, kind, body: string) {.noreturn.} =
  backendResponse(int16(status), kind.cstring, csize_t(kind.len), body.cstring, csize_t(body.len))

proc onGet(url, arg: cstring) {.cdecl.} =
  for name, value in decodeQuery(parseUri($url).query):
    if name == "name":
      respond(200, "text/plain; charset=utf-8", "Hello, " & value & "!\n")
  respond(404, "text/plain", "Who are you? /?name=\n")

# The most frequent first, and by the alphabet where that is the same.
proc onPost(url, arg, kind: cstring, data: pointer, len: csize_t) {.cdecl.} =
  var text = newString(len)
  if len > 0:
    copyMem(addr text[0], data, len)
  var counts = initCountTable[string]()
  for word in text.toLowerAscii.split(AllChars - Letters):
    if word.len > 0:
      counts.inc word
  var lines: seq[(int, string)]
  for word, count in counts:
    lines.add (-count, word)
  lines.sort()
  var answer = ""
  for (count, word) in lines:
    answer.add $(-count) & " " & word & "\n"
  respond(200, "text/plain", answer)

setBackendGet(onGet)
setBackendPost(onPost)
waitForRequests()
